"""The standard security handler of PDF (ISO 32000-1, 7.6), to make files with a password: RC4 and AES, 128 bits."""

import hashlib

_PAD = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")
_PERMISSIONS = -4
ID = b"0123456789abcdef"


class Encryption:
    """Encrypts streams of a file.

    Args:
        cipher: "rc4" or "aes".
        user: Password to open it; empty for none.
        owner: Password to change it.
    """

    def __init__(self, cipher, user=b"", owner=b"owner"):
        self.cipher = cipher
        self.owner_entry = self._owner_entry(user, owner)
        digest = hashlib.md5(
            _padded(user) + self.owner_entry + (_PERMISSIONS % 2**32).to_bytes(4, "little") + ID
        ).digest()
        self.key = _again(digest)
        entry = _rc4_rounds(self.key, hashlib.md5(_PAD + ID).digest())
        self.user_entry = entry + bytes(16)

    @property
    def dictionary(self):
        """The encryption dictionary's text."""
        entries = b"/O <%s> /U <%s> /P %d" % (
            self.owner_entry.hex().encode(), self.user_entry.hex().encode(), _PERMISSIONS,
        )  # fmt: skip
        if self.cipher == "rc4":
            return b"<< /Filter /Standard /V 2 /R 3 /Length 128 %s >>" % entries
        return (
            b"<< /Filter /Standard /V 4 /R 4 /Length 128 /CF << /StdCF << /CFM /AESV2 /AuthEvent /DocOpen /Length 16 "
            b">> >> /StmF /StdCF /StrF /StdCF %s >>" % entries
        )

    def encrypt(self, number, data):
        """Encrypt a stream of an object."""
        salt = b"sAlT" if self.cipher == "aes" else b""
        key = hashlib.md5(self.key + number.to_bytes(3, "little") + bytes(2) + salt).digest()
        return _rc4(key, data) if self.cipher == "rc4" else bytes(16) + _aes_cbc(key, bytes(16), data)

    @staticmethod
    def _owner_entry(user, owner):
        return _rc4_rounds(_again(hashlib.md5(_padded(owner)).digest()), _padded(user))


def _padded(password):
    return (password + _PAD)[:32]


def _again(digest):
    for _ in range(50):
        digest = hashlib.md5(digest).digest()
    return digest


def _rc4_rounds(key, data):
    for number in range(20):
        data = _rc4(bytes(byte ^ number for byte in key), data)
    return data


def _rc4(key, data):
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def _times(a, b):
    product = 0
    while b:
        product ^= a * (b & 1)
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def _make_box():
    box = []
    for value in range(256):
        inverse = next((other for other in range(256) if _times(value, other) == 1), 0)
        box.append(0x63)
        for shift in range(5):
            box[-1] ^= ((inverse << shift) | (inverse >> (8 - shift))) & 0xFF
    return box


def _aes_cbc(key, before, data):
    box = _make_box()
    words = [list(key[at : at + 4]) for at in range(0, 16, 4)]
    constant = 1
    for index in range(4, 44):
        word = list(words[-1])
        if index % 4 == 0:
            word = [box[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _times(constant, 2)
        words.append([a ^ b for a, b in zip(words[-4], word, strict=True)])
    rounds = [[byte for word in words[at : at + 4] for byte in word] for at in range(0, 44, 4)]
    padding = 16 - len(data) % 16
    data += bytes([padding]) * padding
    out = b""
    for at in range(0, len(data), 16):
        state = [a ^ b ^ c for a, b, c in zip(data[at : at + 16], before, rounds[0], strict=True)]
        for number, round_key in enumerate(rounds[1:], 1):
            state = [box[state[(4 * (column + row) + row) % 16]] for column in range(4) for row in range(4)]
            if number < 10:
                mixed = []
                for column in range(0, 16, 4):
                    a, b, c, d = state[column : column + 4]
                    for one, two, three, four in ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c)):
                        mixed.append(_times(one, 2) ^ _times(two, 3) ^ three ^ four)
                state = mixed
            state = [a ^ b for a, b in zip(state, round_key, strict=True)]
        before = bytes(state)
        out += before
    return out

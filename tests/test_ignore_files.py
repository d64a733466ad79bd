import os
import subprocess

from pplx_vectorstore.walking import walk


def test_ignore_files_are_bytes_of_which_a_line_feed_ends_a_line(tmp_path):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_bytes(b"caf\xe9.txt\n?.md\r\nx\x0cfoo.md\n*\xe2\x80\xa8.rst\n")
    for name in (b"caf\xe9.txt", "é.md".encode(), b"a.md", b"foo.md", "x\u2028.rst".encode(), b"y.rst"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(b"x")
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "-coz", "--exclude-standard"], check=True, capture_output=True
    ).stdout
    expected = {os.fsdecode(name) for name in listed.split(b"\0") if name and not name.startswith(b".")}
    assert {file.path.name for file in walk([tmp_path]).files} == expected == {"é.md", "foo.md", "y.rst"}

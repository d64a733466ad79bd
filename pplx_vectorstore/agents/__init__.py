"""An index as a tool of agents: a server of the Model Context Protocol.

``index`` and ``model`` are opened and loaded when they are first asked for; ``reading``, ``folders`` and ``compat``
have the ``tools`` that an agent may call, and know nothing of the protocol; ``server`` speaks it, over standard input
and output or by ``http``; ``command`` puts them together.
"""

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8765

"""What every HTTP server of this library has in front: who may use it, and connections with deadlines.

`access` looks at requests, `connections` at sockets; neither knows what is behind. An application asks `require_form`
and `require_key` of each request, answers `NotAdmittedError` in its own form, and runs on a `GuardedProtocol`.
"""

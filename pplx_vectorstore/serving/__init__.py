"""The server of the hosted API's protocol, on a model that runs here.

::

    bytes → wire → service: tokenizer threads → scheduler → model threads → service → wire → bytes

`app` speaks HTTP, behind what `guarded_http` lets through, and `wire` the protocol's JSON; neither knows the model, and
`scheduler` knows none of them.
"""

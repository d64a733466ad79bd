"""The server of the hosted API's protocol, on a model that runs here.

::

    bytes → wire → service: tokenizer threads → scheduler → model threads → service → wire → bytes

`app` and `connections` speak HTTP, `wire` the protocol's JSON, and neither knows the model; `scheduler` knows neither.
"""

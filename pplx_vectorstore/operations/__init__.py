"""What a store does, written once for blocking and async clients: coroutine functions over ``Calls``."""

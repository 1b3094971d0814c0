"""Slots in a Redis or Valkey server, one string key a slot.

redis-py makes the connection (TLS, Unix sockets), and hiredis packs commands and parses replies. The command layer of redis-py
is left out: it would cost more than the rest of an access.

All keys of a store begin with ``{name}:``, so that one node of a cluster has all of them, and one ACL pattern covers them:

    {name}:lease    who has the store: a random token, which expires
    {name}:fence    how often the lease was taken, and the token of the last time
    {name}:regions  hash: region -> number, slots and slot size; under the empty name, the last number given out
    {name}:dropped  hash: number -> slots, of dropped regions whose slots are still being deleted
    {name}:fold     the result of a BITOP, inside one transaction only; whoever asks for it elsewhere asks whether the store is being moved
    {name}:NUMBER:INDEX  a slot, both in hexadecimal and of a fixed width in each region

Every write is a transaction that the server refuses where the lease changed since this client last looked at it (WATCH). The next look is part of the same
round trip, so that the fence costs none.

What the server sees of a failure: where a connection breaks in the middle of a call, the very same commands, with the same bytes, on a new one. They
name slots by number and set them to values, so that it makes no difference whether the first ones took effect. What of them is still on its way when
the new connection is there cannot take effect any more: the owner first touches the lease.

In a cluster each node knows which one has the store, and says so (MOVED): that is followed, as a new connection. CLUSTER SLOTS is only asked so as to know
whom to ask when that node is dead. A node that is named gets what the first one got, in the same order, password included.
"""

from oram.backends.redis.backend import RedisBackend
from oram.backends.redis.options import RedisOptions

__all__ = ["RedisBackend", "RedisOptions"]

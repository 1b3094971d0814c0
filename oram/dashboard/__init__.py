"""What the server sees, live: ``oram watch``, a page on the loopback that shows a plain store and an oblivious one under the same workload.

    session     a run: settings, steps, frames
    frames      the newest frame to many viewers, and no queue
    server      the page, its events and its switches

Needs the extra ``dashboard``. Everything runs on scratch stores in memory, under keys that nobody keeps: nothing of the user's is opened.
"""

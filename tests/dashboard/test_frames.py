"""The newest frame: nobody waits for a slow viewer, who misses what came in between."""

from __future__ import annotations

import asyncio

from oram.dashboard.frames import Newest


def test_a_slow_viewer_gets_the_newest_frame_and_no_queue() -> None:
    async def scene() -> list[str]:
        newest = Newest(2)
        await newest.show("1")
        slow, quick = newest.frames(), newest.frames()
        seen = [await anext(slow), await anext(quick)]
        for number in range(2, 1000):
            await newest.show(str(number))  # returns, whoever looks
            if number < 4:
                seen.append(await anext(quick))
        seen += [await anext(slow), await anext(quick)]
        waiting = asyncio.create_task(anext(slow))
        await asyncio.sleep(0)
        assert not waiting.done()  # nothing is shown twice
        await newest.show("last")
        seen.append(await waiting)
        await newest.end()
        for viewer in (slow, quick):
            seen += [frame async for frame in viewer]
        return seen

    assert asyncio.run(scene()) == ["1", "1", "2", "3", "999", "999", "last"]


def test_who_looks_is_counted() -> None:
    async def scene() -> None:
        newest = Newest(2)
        waiting = asyncio.create_task(newest.watched())
        await newest.show("1")
        await asyncio.sleep(0)
        assert not waiting.done()
        assert newest.enter()
        assert newest.enter()
        await waiting
        assert newest.viewers == 2
        assert not newest.enter()  # where it is decided: who has a seat need not have seen anything yet
        newest.leave()
        assert newest.enter()
        newest.leave()
        newest.leave()
        assert newest.viewers == 0
        again = asyncio.create_task(newest.watched())
        await asyncio.sleep(0)
        assert not again.done()
        again.cancel()

    asyncio.run(scene())

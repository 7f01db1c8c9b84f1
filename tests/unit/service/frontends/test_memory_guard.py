"""When uploads are held and cut off, with measured memory that the test decides."""

from service.frontends.memory_guard import TRIM_BYTES, MemoryGuard


class FakeUploads:
    def __init__(self, count: int) -> None:
        self.count = count
        self.held = False

    def hold(self, held: bool) -> None:
        self.held = held

    def cut_off(self, count: int) -> None:
        self.count -= count


class World:
    def __init__(self, uploads: int) -> None:
        self.used_bytes, self.freed_bytes, self.reserved_bytes, self.trims = 1000, 0, 0, 0
        self.uploads = FakeUploads(uploads)
        self.guard = MemoryGuard(
            max_bytes=100,
            uploads=self.uploads,
            measure=lambda: self.used_bytes + self.freed_bytes,
            reserved=lambda: self.reserved_bytes,
            give_back=self.give_back,
        )
        self.guard.start()

    def give_back(self) -> None:
        self.trims += 1
        self.freed_bytes = 0


async def test_below_the_bound_nothing_happens() -> None:
    world = World(uploads=8)
    world.used_bytes += 100
    await world.guard.check()
    assert (world.uploads.held, world.uploads.count, world.trims) == (False, 8, 0)


async def test_over_the_bound_uploads_are_held_and_a_quarter_is_cut_off_until_there_is_room() -> None:
    world = World(uploads=8)
    world.used_bytes += 101
    counts = []
    for _ in range(3):
        await world.guard.check()
        counts.append(world.uploads.count)
    assert (world.uploads.held, counts) == (True, [6, 4, 3])
    world.used_bytes -= 50
    await world.guard.check()
    assert (world.uploads.held, world.uploads.count) == (False, 3)


async def test_freed_memory_is_given_back_before_anything_is_cut_off() -> None:
    world = World(uploads=8)
    world.freed_bytes = 500
    await world.guard.check()
    assert (world.uploads.held, world.uploads.count, world.trims) == (False, 8, 1)


async def test_what_decoding_has_reserved_does_not_count() -> None:
    world = World(uploads=8)
    world.used_bytes, world.reserved_bytes = 1000 + 500, 400
    await world.guard.check()
    assert (world.guard.call_bytes, world.uploads.held) == (100, False)


async def test_memory_is_given_back_after_growth() -> None:
    world = World(uploads=0)
    await world.guard.trim_after_growth()
    assert world.trims == 0
    world.freed_bytes = TRIM_BYTES
    await world.guard.trim_after_growth()
    assert (world.trims, world.freed_bytes) == (1, 0)

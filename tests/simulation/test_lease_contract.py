"""The promises of ``storage.Storage`` about the writer lease, kept by both its bodies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from itemstore.storage import (
    Claim,
    ForeignChange,
    Grant,
    Standing,
    State,
    Storage,
    StorageRefused,
)
from tests.simulation.bodies import ME, NOW, Tables, claim, delete, row, upsert
from tests.sql import loaded
from tests.walking import items

OTHER: Final = "other"
SHORT_S: Final = 0.05  # a lease that is waited out
HOUR_US: Final = 3_600_000_000
MARGIN_US: Final = 60_000_000  # between two readings of one machine's clock


async def take(storage: Storage, holder: str = ME, *, gone: str | None = None, **of: Any) -> Grant:
    grant = await storage.acquire(claim(holder, **of), f"process of {holder}", gone)
    assert grant is not None
    return grant


async def is_refused(
    storage: Storage, holder: str, *, gone: str | None = None, epoch: int = 0
) -> bool:
    before = await storage.lease()
    grant = await storage.acquire(claim(holder, epoch), "process", gone)
    if grant is None:
        after = await storage.lease()
        assert (before.epoch, before.holder) == (after.epoch, after.holder)
    return grant is None


async def until_free(storage: Storage) -> None:
    while not (await storage.lease()).is_free:  # noqa: ASYNC110 - the server's clock is asked
        await asyncio.sleep(SHORT_S / 10)


async def notes(storage: Storage, since_us: int = 0) -> list[ForeignChange]:
    """All pages of them."""
    found: list[ForeignChange] = []
    while page := await storage.foreign_changes_since(since_us, found[-1].seq if found else 0):
        found += page
    return found


def noted(changes: list[ForeignChange]) -> list[tuple[str, int]]:
    return [(change.id, change.version) for change in changes]


# --- who holds it


async def test_a_new_database_has_no_holder(storage: Storage) -> None:
    """At first nobody holds the lease, and the database tells its own time."""
    lease = await storage.lease()
    assert (None, None, True) == (lease.holder, lease.process, lease.is_free)
    assert abs(lease.now_us - time.time_ns() // 1_000) < MARGIN_US


async def test_the_lease_is_granted_once(tables: Tables) -> None:
    """Of many who ask at once one gets the lease; it is named, with its process."""
    storages = [(await tables.open())[0] for _ in range(4)]
    claims = [claim(f"{n}") for n in range(4)]
    asked = zip(storages, claims, strict=True)
    grants = await asyncio.gather(*(each.acquire(its, "p", None) for each, its in asked))
    [winner] = [n for n, grant in enumerate(grants) if grant is not None]
    lease = await storages[0].lease()
    assert (f"{winner}", "p", False) == (lease.holder, lease.process, lease.is_free)
    assert lease.epoch == grants[winner].epoch  # type: ignore[union-attr]
    assert await is_refused(storages[0], f"{winner}")  # nor is it granted again to who has it


async def test_a_renewed_lease_is_not_to_be_had(storage: Storage) -> None:
    """A short lease lasts on as long as its last heartbeat said."""
    grant = await take(storage, lease_s=SHORT_S)
    for beat in (storage.renew, lambda its: storage.write([upsert("a", NOW)], its)):
        standing = await beat(claim(ME, grant.epoch))
        assert standing.is_held
        assert not (await storage.lease()).is_free
        assert await is_refused(storage, OTHER)


async def test_an_expired_lease_is_to_be_had(storage: Storage) -> None:
    """A lease whose time is over is free, and its former holder's claims are void."""
    former = await take(storage, lease_s=SHORT_S)
    await until_free(storage)
    grant = await take(storage, OTHER)
    assert grant.epoch > former.epoch
    assert not (await storage.renew(claim(ME, former.epoch))).is_held
    assert await is_refused(storage, ME)


async def test_an_expired_lease_is_renewed_if_nobody_took_it(storage: Storage) -> None:
    """A heartbeat that comes late finds the lease its own."""
    grant = await take(storage, lease_s=SHORT_S)
    await until_free(storage)
    assert (await storage.renew(claim(ME, grant.epoch))).is_held
    assert await is_refused(storage, OTHER)


async def test_a_holder_that_is_gone_is_succeeded_at_once(storage: Storage) -> None:
    """Who names the holder as gone gets the lease; who names another does not."""
    former = await take(storage)
    assert await is_refused(storage, OTHER, gone="somebody")
    assert (await take(storage, OTHER, gone=ME)).epoch > former.epoch


async def test_a_row_that_fell_back_is_taken_again(storage: Storage) -> None:
    """Whoever had a later epoch than the row gets the lease, under a later one still."""
    former = await take(storage)
    assert await is_refused(storage, OTHER, epoch=former.epoch)
    grant = await take(storage, OTHER, epoch=former.epoch + 7)
    assert grant.epoch > former.epoch + 7


async def test_an_epoch_is_never_used_again(storage: Storage) -> None:
    """Each epoch is later than the last, than the taker's own, and than the time in seconds."""
    epochs = [0]
    for number in range(3):
        grant = await take(storage, f"{number}")
        await storage.let_go(claim(f"{number}", grant.epoch))
        epochs.append(grant.epoch)
    assert epochs == sorted(set(epochs))
    assert epochs[1] >= NOW // 1_000_000
    assert (await take(storage, epoch=epochs[-1] + 10**6)).epoch > epochs[-1] + 10**6


# --- giving it back, and asking for it


async def test_a_lease_that_was_let_go_is_free(storage: Storage) -> None:
    """Letting go frees the lease at once, and voids the claim; another's claim lets nothing go."""
    grant = await take(storage)
    for wrong in (claim(OTHER, grant.epoch), claim(ME, grant.epoch - 1)):
        await storage.let_go(wrong)
        assert (await storage.renew(claim(ME, grant.epoch))).is_held
    for _ in range(2):
        await storage.let_go(claim(ME, grant.epoch))
    lease = await storage.lease()
    assert (None, None, True, grant.epoch) == (
        lease.holder,
        lease.process,
        lease.is_free,
        lease.epoch,
    )
    assert Standing(False, False, grant.epoch, 0) == await storage.renew(claim(ME, grant.epoch))


async def test_a_wish_reaches_the_holder(storage: Storage) -> None:
    """The holder is told with each batch and heartbeat that the lease is wanted, and no more."""
    grant = await take(storage)
    its = claim(ME, grant.epoch)
    assert not (await storage.renew(its)).is_wanted
    await storage.want(OTHER)
    assert (await storage.renew(its)).is_wanted
    assert (await storage.write([upsert("a", NOW)], its)).is_wanted
    assert not (await storage.renew(claim(OTHER, grant.epoch))).is_wanted  # nobody else is
    await storage.want("third", wanted=False)
    assert (await storage.renew(its)).is_wanted
    await storage.want(OTHER, wanted=False)
    assert not (await storage.renew(its)).is_wanted


async def test_a_wish_reserves_what_is_let_go(storage: Storage) -> None:
    """What was let go is kept for the one who asked for it."""
    grant = await take(storage)
    await storage.want(OTHER)
    await storage.let_go(claim(ME, grant.epoch))
    assert await is_refused(storage, "third")
    assert await is_refused(storage, ME)
    its = claim(OTHER, (await take(storage, OTHER)).epoch)
    assert not (await storage.renew(its)).is_wanted  # its own wish is fulfilled


async def test_a_wish_does_not_keep_an_expired_lease(storage: Storage) -> None:
    """An expired lease is anybody's, and the wish of another then reaches who took it."""
    await take(storage, lease_s=SHORT_S)
    await storage.want(OTHER)
    await until_free(storage)
    its = claim("third", (await take(storage, "third")).epoch)
    assert (await storage.renew(its)).is_wanted


async def test_a_wish_is_forgotten_after_five_seconds(tables: Tables, storage: Storage) -> None:
    """A wish that is not repeated for five seconds neither reaches the holder nor reserves."""
    grant = await take(storage)
    its = claim(ME, grant.epoch)
    await storage.want(OTHER)
    await tables.age_wish(6.0)
    assert not (await storage.renew(its)).is_wanted
    await storage.let_go(its)
    await take(storage, "third")


# --- clocks


async def test_a_claim_is_told_what_was_before(storage: Storage) -> None:
    """Epoch and high water come back as they were before the call; the high water only grows."""
    first = await take(storage, high_water=3)
    assert first.high_water == 0
    for given, before in ((5, 0), (4, 5), (9, 5), (9, 9)):
        its = claim(ME, first.epoch, high_water=given)
        assert Standing(True, False, first.epoch, before) == await storage.write(
            [upsert("a", NOW)], its
        )
    void = claim(ME, first.epoch - 1, high_water=99)
    assert Standing(False, False, first.epoch, 9) == await storage.renew(void)
    await storage.let_go(claim(ME, first.epoch, high_water=12))
    assert (await take(storage, OTHER)).high_water == 12


async def test_what_is_settled_only_grows(storage: Storage) -> None:
    """A heartbeat raises what is settled and never lowers it; a void claim does neither."""
    grant = await take(storage)
    base = grant.clock + 1_000
    for given, known in ((5, 5), (3, 5), (8, 8)):
        await storage.renew(claim(ME, grant.epoch, settled=base + given))
        assert (await storage.lease()).settled == base + known
    await storage.renew(claim(OTHER, grant.epoch, settled=base + 9))
    assert (await storage.lease()).settled == base + 8
    await storage.let_go(claim(ME, grant.epoch, clock=base + 10))
    assert (await storage.lease()).settled == base + 10


async def test_nothing_is_settled_that_may_yet_be_given_out(storage: Storage) -> None:
    """What a grant leaves as settled is not beyond its clock, where the holder's versions begin."""
    for number in range(5):
        grant = await take(storage, f"{number}", lease_s=SHORT_S)
        assert (await storage.lease()).settled <= grant.clock
        await until_free(storage)


async def test_the_next_clock_is_beyond_the_servers(storage: Storage) -> None:
    """The clock of a grant is at least the server's time, and the taker's own clock."""
    first = await take(storage)
    assert first.clock >= NOW
    await storage.let_go(claim(ME, first.epoch))
    assert (await take(storage, OTHER, clock=NOW + HOUR_US)).clock == NOW + HOUR_US


async def test_the_next_clock_is_beyond_what_was_let_go(storage: Storage) -> None:
    """A clock that was let go far ahead of time is where the next begins; it does not run on."""
    first = await take(storage)
    await storage.let_go(claim(ME, first.epoch, clock=NOW + HOUR_US))
    assert (await take(storage, OTHER)).clock == NOW + HOUR_US


async def test_the_next_clock_is_beyond_what_a_lost_holder_can_give(storage: Storage) -> None:
    """A clock ahead of time has run on since its last heartbeat: the next begins beyond it."""
    first = await take(storage)
    its = claim(ME, first.epoch, clock=NOW + HOUR_US, lease_s=SHORT_S)
    began = (await storage.lease()).now_us
    await storage.renew(its)
    ended = (await storage.lease()).now_us
    await storage.renew(claim(OTHER, first.epoch, clock=NOW + 3 * HOUR_US))  # void
    await until_free(storage)
    before = (await storage.lease()).now_us
    grant = await take(storage, OTHER)
    after = (await storage.lease()).now_us
    assert before - ended <= grant.clock - (NOW + HOUR_US) <= after - began


async def test_no_version_the_holder_may_have_given_is_free(tables: Tables) -> None:
    """The newest version found at the opening counts the holder's clock."""
    storage, _ = await tables.open()
    grant = await take(storage)
    await storage.renew(claim(ME, grant.epoch, clock=NOW + HOUR_US))
    _, found = await tables.open()
    assert found.newest_version == NOW + HOUR_US


# --- writing with and without it


@pytest.fixture(params=["another's", "nobody's", "expired and taken", "never had"])
async def void(request: pytest.FixtureRequest, storage: Storage) -> AsyncIterator[Claim]:
    """A claim that does not hold."""
    match request.param:
        case "another's":
            former = await take(storage)
            await take(storage, OTHER, gone=ME)
            yield claim(ME, former.epoch)
        case "nobody's":
            former = await take(storage)
            await storage.let_go(claim(ME, former.epoch))
            yield claim(ME, former.epoch)
        case "expired and taken":
            former = await take(storage, lease_s=SHORT_S)
            await until_free(storage)
            await take(storage, OTHER)
            yield claim(ME, former.epoch)
        case _:
            yield claim(ME, 0)


async def test_without_the_lease_only_the_acknowledged_is_written(
    storage: Storage, void: Claim
) -> None:
    """Under a void claim rows nobody was told of are left out; the others are written and noted."""
    batch = [
        upsert("a", NOW, is_acked=True),
        upsert("b", NOW, is_acked=False),
        delete("c", NOW, is_acked=True),
        delete("d", NOW, is_acked=False),
    ]
    standing = await storage.write(batch, void)
    assert not standing.is_held
    assert await items(storage) == [row(batch[0])]
    assert sorted(noted(await storage.foreign_changes())) == [("a", NOW), ("c", NOW)]
    states = {state.id: state.version for state in await storage.states(["a", "b", "c", "d"])}
    assert {"a": NOW, "b": 0, "c": NOW, "d": 0} == states


async def test_without_the_lease_newer_rows_win(storage: Storage) -> None:
    """What a former holder still writes changes nothing that is newer, and is then not noted."""
    former = await take(storage)
    grant = await take(storage, OTHER, gone=ME)
    newer = [upsert("a", NOW + 9), delete("b", NOW + 9)]
    assert (await storage.write(newer, claim(OTHER, grant.epoch))).is_held
    late = [delete("a", NOW + 1), upsert("b", NOW + 1), upsert("c", NOW + 1)]
    assert not (await storage.write(late, claim(ME, former.epoch))).is_held
    assert await items(storage) == [row(newer[0]), row(late[2])]
    assert noted(await storage.foreign_changes()) == [("c", NOW + 1)]


async def test_under_the_lease_everything_is_written_and_nothing_noted(storage: Storage) -> None:
    """Under a valid claim rows are written whether or not anybody was told of them."""
    grant = await take(storage)
    batch = [
        upsert("a", NOW, is_acked=True),
        upsert("b", NOW, is_acked=False),
        delete("c", NOW, is_acked=False),
    ]
    assert (await storage.write(batch, claim(ME, grant.epoch))).is_held
    assert await items(storage) == [row(batch[0]), row(batch[1])]
    assert [NOW] == [state.version for state in await storage.states(["c"])]
    assert await storage.foreign_changes() == []


async def test_an_expired_lease_that_nobody_took_still_writes(storage: Storage) -> None:
    """A batch that comes late and finds the lease its own is written whole."""
    grant = await take(storage, lease_s=SHORT_S)
    await until_free(storage)
    standing = await storage.write([upsert("a", NOW, is_acked=False)], claim(ME, grant.epoch))
    assert standing.is_held
    assert [item_id for item_id, _ in await items(storage)] == ["a"]
    assert not (await storage.lease()).is_free


async def test_a_refused_batch_is_no_heartbeat(tables: Tables, storage: Storage) -> None:
    """A batch that is refused leaves the lease as it was, with the rest of the transaction."""
    await tables.refuse_poison()
    grant = await take(storage)
    its = claim(ME, grant.epoch, high_water=7, settled=grant.clock + HOUR_US)
    with pytest.raises(StorageRefused):
        await storage.write([upsert("poison", NOW)], its)
    assert (await storage.lease()).settled < grant.clock + HOUR_US
    assert (await storage.renew(its)).high_water == 0


# --- what changed


async def changed(storage: Storage, after: int) -> list[list[State]]:
    """The pages of what changed."""
    pages: list[list[State]] = []
    following: int | None = after
    while following is not None:
        page, following = await storage.changes(following)
        pages.append(page)
    return pages


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> int:
    """Of what changed, as small as the simulation's."""
    monkeypatch.setattr("itemstore.storage.postgres.CHANGES_PAGE", 5)
    return 5


async def test_changes_come_in_order_with_deletions(storage: Storage, small_pages: int) -> None:
    """What changed after a version comes once and oldest first; what is gone has no entry."""
    grant = await take(storage)
    batch = [upsert(f"{n:02}", NOW + n) if n % 3 else delete(f"{n:02}", NOW + n) for n in range(17)]
    await storage.write(batch, claim(ME, grant.epoch))
    expected = [
        State(each.id, None if each.deleted else each.entry, each.version) for each in batch
    ]
    for after in (0, NOW - 1, NOW, NOW + 4, NOW + 15):
        pages = await changed(storage, after)
        later = [state for state in expected if state.version > after]
        assert [state for page in pages for state in page] == later
        assert len(pages) == len(later) // small_pages + 1
    assert await storage.changes(NOW + 16) == ([], None)


async def test_a_page_of_changes_never_ends_between_equal_versions(
    storage: Storage, small_pages: int
) -> None:
    """Rows of one version, items and deletions alike, come on one page."""
    grant = await take(storage)
    ties = [upsert("a", NOW), *(upsert(f"b{n}", NOW + 1) for n in range(7))]
    ties += [*(delete(f"c{n}", NOW + 1) for n in range(4)), upsert("d", NOW + 2)]
    await storage.write(ties, claim(ME, grant.epoch))
    pages = await changed(storage, 0)
    assert [12, 1] == [len(page) for page in pages]
    assert sorted(state.id for page in pages for state in page) == [each.id for each in ties]


async def test_changes_by_other_hands_are_among_them(tables: Tables, storage: Storage) -> None:
    """A row changed by hand comes with the rest, under the version it was given."""
    await tables.change_by_hand("a", b"{}")
    await tables.change_by_hand("b", b"{}")
    await tables.change_by_hand("b", None)
    [page] = await changed(storage, NOW)
    assert [("a", False), ("b", True)] == [(state.id, state.entry is None) for state in page]
    assert [state.version for state in page] == sorted(state.version for state in page)


async def test_a_walk_brings_what_is_not_settled(storage: Storage) -> None:
    """A walk that begins at a holder's mark brings what the holder commits beyond it meanwhile."""
    grant = await take(storage)
    settled = grant.clock + 10
    await storage.write(
        [upsert(f"{n}", grant.clock + n) for n in range(8)],
        claim(ME, grant.epoch, settled=settled, clock=settled),
    )
    walked, position = await storage.page(0)
    later = [upsert(f"{n}", settled + 1 + n, b'{"n":1}') for n in range(5, 9)]
    await storage.write(later, claim(ME, grant.epoch))
    while position is not None:
        page, position = await storage.page(position)
        walked += page
    newest = dict(await loaded(storage, [f"{n}" for n in range(9)]))
    assert dict(walked) == newest
    assert len(newest) == 9


# --- changes by other hands, for a standby


async def test_a_standby_sees_what_is_not_taken_over(tables: Tables, storage: Storage) -> None:
    """Notes nobody took over are there for the holder and for a standby, in order, by pages."""
    for number in range(12):
        await tables.change_by_hand(f"{number:02}", b"{}")
    found = await storage.foreign_changes()
    assert [f"{n:02}" for n in range(12)] == [change.id for change in found]
    assert found == await notes(storage, since_us=NOW + HOUR_US)
    assert found[7:] == (await storage.foreign_changes_since(0, found[6].seq)) + (
        await storage.foreign_changes_since(0, found[11].seq)
    )


async def test_a_standby_sees_what_was_taken_over_since(tables: Tables, storage: Storage) -> None:
    """A note that the holder took over is kept for standbys that have not looked since."""
    for item_id in "abc":
        await tables.change_by_hand(item_id, b"{}")
    before = (await storage.lease()).now_us
    found = await storage.foreign_changes()
    grant = await take(storage)
    await storage.forget_foreign_changes([found[0].seq, found[2].seq], grant.epoch)
    after = (await storage.lease()).now_us + 1
    assert await storage.foreign_changes() == [found[1]]
    assert found == await notes(storage, before)
    assert [found[1]] == await notes(storage, after)


async def test_only_the_holder_takes_notes_over(tables: Tables, storage: Storage) -> None:
    """Under an epoch that is over, or of a lease that was given back, no note is forgotten."""
    await tables.change_by_hand("a", b"{}")
    found = await storage.foreign_changes()
    former = await take(storage)
    grant = await take(storage, OTHER, gone=ME)
    await storage.forget_foreign_changes([found[0].seq], former.epoch)
    assert await storage.foreign_changes() == found
    await storage.let_go(claim(OTHER, grant.epoch))
    await storage.forget_foreign_changes([found[0].seq], grant.epoch)
    assert await storage.foreign_changes() == found


async def test_a_truncate_reaches_a_standby(tables: Tables, storage: Storage) -> None:
    """The note of a TRUNCATE has no id."""
    await storage.write([upsert("a", NOW)], claim())
    await tables.truncate()
    change = (await notes(storage))[-1]
    assert change.id == ""
    assert change.version > NOW
    assert await items(storage) == []


# --- opening


async def test_a_store_is_known_by_its_id(tables: Tables) -> None:
    """Everyone who opens a database finds the same id of its store."""
    found = [(await tables.open())[1] for _ in range(2)]
    assert found[0].store_id == found[1].store_id


async def test_what_was_purged_is_remembered(tables: Tables) -> None:
    """A purge that forgot something says up to where, for all who open; one that did not, not."""
    storage, found = await tables.open()
    assert found.purged_before == 0
    await storage.purge(NOW)
    assert (await tables.open())[1].purged_before == 0
    await storage.write([delete("a", NOW)], claim())
    await storage.purge(NOW + 5)
    await storage.purge(NOW + 3)
    await storage.purge(NOW + 9)
    assert (await tables.open())[1].purged_before == NOW + 5


async def test_what_is_parked_can_be_asked_for(storage: Storage) -> None:
    """Quarantine is read whole, with the reason and when, without what newer writes overtook."""
    await storage.quarantine(upsert("a", NOW), "no reason")
    await storage.quarantine(upsert("b", NOW), "a reason")
    await storage.write([upsert("a", NOW + 1)], claim())
    [parked] = await storage.parked()
    assert ("b", NOW, "a reason") == (parked.change.id, parked.change.version, parked.reason)
    assert abs(parked.at_us - time.time_ns() // 1_000) < MARGIN_US

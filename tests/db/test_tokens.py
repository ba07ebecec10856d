"""API keys in the database: who stands, until when, and what rotation and revocation do."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from db.access import tokens
from db.access.token_changes import IssuedToken
from db.core.database import Database
from db.core.enums import Role
from db.core.errors import BadInput, Forbidden, TokenNotFound
from db.core.identity import Identity
from db.core.tables import Token
from db.core.token_format import PresentedToken
from tests.support.fleet import fetch_rows, limit_examples
from tests.support.keyring import (
    ADMIN,
    DAY,
    HOUR,
    age_tokens,
    create_enrolment,
    create_token,
    find_token,
    list_valid_tokens,
    parse_token_text,
    revoke_token,
    rotate_token,
    use_tokens,
)


async def row(database: Database, made: IssuedToken) -> Token:
    async with database.read() as session:
        found = await session.get(Token, made.token.id)
    assert found is not None
    return found


async def test_a_key_is_known_by_its_text_alone(database: Database) -> None:
    made, other = await create_token(database, name="grafana"), await create_token(database)
    found = await find_token(database, made.text)
    assert found is not None
    assert tokens.to_identity(found) == Identity("grafana", Role.VIEWER, token_id=made.token.id)
    forged = PresentedToken(made.token.public_id, parse_token_text(other.text).secret_hash)
    async with database.read() as session:
        assert await tokens.find_valid_token(session, forged) is None
        assert (
            await tokens.find_valid_token(
                session, PresentedToken("nosuchkey0", other.token.secret_hash)
            )
            is None
        )


async def test_the_text_of_a_key_is_stored_nowhere(database: Database) -> None:
    made = await create_token(database, name="grafana")
    rotated = await rotate_token(database, made.token)
    await revoke_token(database, "grafana")
    dumped = await fetch_rows(
        database, "SELECT t::text FROM tokens t UNION ALL SELECT a::text FROM audit_log a"
    )
    assert len(dumped) == 6
    for (line,) in dumped:
        for key in (made, rotated):
            assert key.text[14:46] not in line
    audited = await fetch_rows(database, "SELECT a::text FROM audit_log a")
    assert not [line for (line,) in audited if made.token.secret_hash.hex() in line]


async def test_no_secret_is_shown_when_a_key_is_printed(database: Database) -> None:
    made = await create_token(database)
    for shown in (repr(made), str(made), repr(made.token)):
        assert made.token.public_id in shown
        assert made.text not in shown
        assert made.text[14:46] not in shown
        assert repr(made.token.secret_hash) not in shown


async def test_an_agents_key_speaks_for_its_nodes(database: Database) -> None:
    made = await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"], name="rack-1")
    assert tokens.to_identity(made.token) == Identity(
        "rack-1", Role.AGENT, frozenset({"gpu-1", "gpu-2"}), made.token.id
    )


async def test_a_key_without_a_name_is_called_by_its_role_and_public_id(
    database: Database,
) -> None:
    made = await create_token(database, Role.OPERATOR)
    assert made.token.name == f"operator-{made.token.public_id}"


@pytest.mark.parametrize(
    ("role", "nodes"),
    [(Role.AGENT, []), (Role.VIEWER, ["gpu-1"]), (Role.ADMIN, ["gpu-1"]), (Role.ENROLMENT, [])],
)
async def test_nodes_are_for_agents_and_enrolment_keys_are_made_another_way(
    database: Database, role: Role, nodes: list[str]
) -> None:
    with pytest.raises(BadInput):
        await create_token(database, role, nodes=nodes)
    assert await fetch_rows(database, "SELECT * FROM tokens") == []


async def test_a_key_stands_until_its_time_is_over(database: Database) -> None:
    made = await create_token(database, lifetime=HOUR)
    await age_tokens(database, HOUR - timedelta(seconds=30))
    assert await list_valid_tokens(database, made) == [made]
    assert await find_token(database, made.text) is not None
    await age_tokens(database, timedelta(seconds=31))
    assert await list_valid_tokens(database, made) == []
    assert await find_token(database, made.text) is None


async def test_a_key_without_a_lifetime_stands_for_ever(database: Database) -> None:
    made = await create_token(database, lifetime=None)
    await age_tokens(database, 10_000 * DAY)
    assert await list_valid_tokens(database, made) == [made]


async def test_which_keys_have_ended_is_one_statement_however_many_there_are(
    database: Database,
) -> None:
    made = [await create_token(database) for _ in range(3)]
    await revoke_token(database, made[1].token.public_id)
    unknown = [uuid4() for _ in range(40_000)]
    async with database.read() as session:
        found = await tokens.find_ended_tokens(session, [*(key.token.id for key in made), *unknown])
    assert found == {made[1].token.id, *unknown}


async def test_a_revoked_key_is_known_no_more(database: Database) -> None:
    made, other = await create_token(database), await create_token(database)
    assert await revoke_token(database, made.token.public_id) == {made.token.id}
    assert await find_token(database, made.text) is None
    assert await list_valid_tokens(database, made, other) == [other]
    with pytest.raises(TokenNotFound) as refusal:
        await revoke_token(database, made.token.public_id)
    assert refusal.value.details == {"token": made.token.public_id}


async def test_a_name_revokes_all_keys_that_have_it(database: Database) -> None:
    named = [await create_token(database, name="grafana") for _ in range(2)]
    named.append(await rotate_token(database, named[0].token))
    other = await create_token(database, name="grafana2")
    assert await revoke_token(database, "grafana") == {key.token.id for key in named}
    assert await list_valid_tokens(database, *named, other) == [other]


async def test_after_a_rotation_both_keys_stand_for_the_overlap(database: Database) -> None:
    old = await create_token(database, Role.AGENT, nodes=["gpu-1"], name="gpu-1", lifetime=10 * DAY)
    new = await rotate_token(database, old.token)
    assert await list_valid_tokens(database, old, new) == [old, new]
    assert tokens.to_identity(new.token) == Identity(
        "gpu-1", Role.AGENT, frozenset({"gpu-1"}), new.token.id
    )
    assert new.token.replaces == old.token.id
    assert new.token.expires_at == new.token.created_at + 10 * DAY
    assert (await row(database, old)).expires_at == new.token.created_at + HOUR
    await age_tokens(database, HOUR)
    assert await list_valid_tokens(database, old, new) == [new]


async def test_a_rotation_gives_the_old_key_no_longer_than_it_had(database: Database) -> None:
    old = await create_token(database, lifetime=HOUR)
    await rotate_token(database, old.token, overlap=DAY)
    assert (await row(database, old)).expires_at == old.token.expires_at


async def test_a_key_that_stood_for_ever_ends_after_the_overlap(database: Database) -> None:
    old = await create_token(database, lifetime=None)
    new = await rotate_token(database, old.token)
    assert new.token.expires_at is None
    await age_tokens(database, HOUR)
    assert await list_valid_tokens(database, old, new) == [new]


async def test_a_rotation_whose_answer_was_lost_can_be_made_again(database: Database) -> None:
    old = await create_token(database, lifetime=10 * DAY)
    lost = await rotate_token(database, old.token)
    ends = (await row(database, old)).expires_at
    new = await rotate_token(database, old.token)
    assert await list_valid_tokens(database, old, lost, new) == [old, new]
    assert (await row(database, old)).expires_at == ends, "no longer than the first overlap"


async def test_a_key_whose_successor_is_in_use_is_not_rotated_again(database: Database) -> None:
    old = await create_token(database)
    new = await rotate_token(database, old.token)
    await use_tokens(database, new)
    with pytest.raises(Forbidden) as refusal:
        await rotate_token(database, old.token)
    assert refusal.value.details == {"token": new.token.public_id}
    assert await list_valid_tokens(database, old, new) == [old, new]
    await revoke_token(database, new.token.public_id)
    assert (await rotate_token(database, old.token)).token.replaces == old.token.id


async def test_a_key_that_does_not_stand_is_not_rotated(database: Database) -> None:
    revoked, expired = await create_token(database), await create_token(database, lifetime=HOUR)
    await revoke_token(database, revoked.token.public_id)
    await age_tokens(database, HOUR)
    for dead in (revoked, expired):
        with pytest.raises(Forbidden):
            await rotate_token(database, dead.token)
    assert await fetch_rows(database, "SELECT count(*) FROM tokens") == [(2,)]


async def test_an_enrolment_key_is_not_rotated(database: Database) -> None:
    made = await create_enrolment(database)
    with pytest.raises(BadInput):
        await rotate_token(database, made.token)


async def test_of_many_rotations_at_once_one_key_is_left(database: Database) -> None:
    old = await create_token(database)
    made = await asyncio.gather(*(rotate_token(database, old.token) for _ in range(8)))
    assert len(await list_valid_tokens(database, *made)) == 1
    assert await list_valid_tokens(database, old) == [old]


async def test_the_last_use_never_goes_back(database: Database) -> None:
    made = await create_token(database)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for instant, recorded in [
        (noon, noon),
        (noon - HOUR, noon),
        (noon + HOUR, noon + HOUR),
    ]:
        async with database.write() as session:
            await tokens.record_uses(session, {made.token.id: instant, uuid4(): instant})
        assert (await row(database, made)).last_used_at == recorded


async def test_a_use_is_never_recorded_as_later_than_now(database: Database) -> None:
    made = await create_token(database)
    async with database.write() as session:
        await tokens.record_uses(session, {made.token.id: datetime(2100, 1, 1, tzinfo=UTC)})
    [(past,)] = await fetch_rows(database, "SELECT last_used_at <= now() FROM tokens")
    assert past


async def test_recording_uses_waits_for_no_key_that_is_being_changed(database: Database) -> None:
    held, free = await create_token(database), await create_token(database)
    async with database.write() as session:
        await session.execute(
            text("SELECT 1 FROM tokens WHERE id = :id FOR UPDATE"), {"id": held.token.id}
        )
        async with asyncio.timeout(5):
            await use_tokens(database, held, free)
    assert (await row(database, held)).last_used_at is None
    assert (await row(database, free)).last_used_at is not None


async def test_recording_a_use_touches_no_index(database: Database) -> None:
    made = [await create_token(database) for _ in range(3)]
    async with database.write() as session:
        await tokens.record_uses(
            session, {key.token.id: datetime(2026, 1, 1, tzinfo=UTC) for key in made}
        )
        counted = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        updated = await session.execute(text(f"{counted} WHERE relname = 'tokens'"))
        assert updated.one() == (3, 3)


@pytest.mark.parametrize("with_dead", [False, True])
async def test_keys_are_listed_newest_first_in_pages(database: Database, with_dead: bool) -> None:  # noqa: FBT001  # a parameter of the test
    made = []
    for n in range(5):
        made.append(await create_token(database, name=f"key-{n}"))
        await age_tokens(database, timedelta(seconds=1))
    await revoke_token(database, "key-3")
    expected = [f"key-{n}" for n in (4, 3, 2, 1, 0) if with_dead or n != 3]
    listed: list[str] = []
    after = None
    while True:
        async with database.read() as session:
            page = await tokens.list_tokens(session, first=2, after=after, include_ended=with_dead)
        listed += [token.name for token in page.rows]
        if not page.has_next:
            break
        after = tokens.TOKEN_KEYSET.encode_cursor(page.rows[-1].created_at, page.rows[-1].id)
    assert listed == expected


async def test_a_dead_key_is_found_no_more(database: Database) -> None:
    made = await create_token(database)
    async with database.read() as session:
        assert (await tokens.get_token(session, made.token.public_id)).id == made.token.id
    await revoke_token(database, made.token.public_id)
    async with database.read() as session:
        with pytest.raises(TokenNotFound):
            await tokens.get_token(session, made.token.public_id)


async def purge(database: Database, batch: int = 100) -> int:
    async with database.write() as session:
        return await tokens.purge_tokens(session, keep=30 * DAY, batch=batch)


async def test_keys_that_are_long_dead_are_deleted_a_batch_at_a_time(database: Database) -> None:
    for _ in range(3):
        await create_token(database, lifetime=HOUR)
    revoked, forever = (
        await create_token(database, lifetime=None),
        await create_token(database, lifetime=None),
    )
    await revoke_token(database, revoked.token.public_id)
    await age_tokens(database, 30 * DAY + timedelta(seconds=1))
    recent = await create_token(database, lifetime=HOUR)
    await age_tokens(database, 29 * DAY)
    assert [await purge(database, batch=2) for _ in range(3)] == [2, 2, 0]
    left = {id_ for (id_,) in await fetch_rows(database, "SELECT id FROM tokens")}
    assert left == {forever.token.id, recent.token.id}


async def test_every_change_of_a_key_is_in_the_audit_trail(database: Database) -> None:
    made = await create_token(database, name="grafana")
    new = await rotate_token(database, made.token)
    await revoke_token(database, new.token.public_id)
    audited = await fetch_rows(
        database,
        "SELECT actor, action, subject, before ->> 'public_id', after ->> 'public_id'"
        " FROM audit_log ORDER BY id",
    )
    old_id, new_id = made.token.public_id, new.token.public_id
    assert audited == [
        (ADMIN.name, "token.create", old_id, None, old_id),
        (ADMIN.name, "token.rotate", new_id, old_id, new_id),
        (ADMIN.name, "token.revoke", new_id, new_id, None),
    ]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("rotate"), st.integers(0, 9), st.integers(0, 48)),
        st.tuples(st.just("revoke"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("use"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("wait"), st.just(0), st.integers(1, 30)),
    ),
    max_size=12,
)


@given(steps=STEPS)
@limit_examples(25)
async def test_whatever_is_done_at_most_one_successor_of_a_key_stands_and_none_outlives_its_time(
    database: Database, steps: list[tuple[str, int, int]]
) -> None:
    async with database.write() as session:
        await session.execute(text("DELETE FROM tokens"))
    made = [await create_token(database, lifetime=2 * DAY)]
    ends = {made[0].token.id: 48.0}  # hours from now at most
    revoked = set()
    for step, which, hours in steps:
        key = made[which % len(made)]
        match step:
            case "rotate":
                try:
                    new = await rotate_token(database, key.token, overlap=hours * HOUR)
                except Forbidden:
                    continue
                made.append(new)
                ends[key.token.id] = min(ends[key.token.id], hours)
                ends[new.token.id] = 48.0
            case "revoke":
                if await list_valid_tokens(database, key):
                    await revoke_token(database, key.token.public_id)
                revoked.add(key.token.id)
            case "use":
                await use_tokens(database, key)
            case "wait":
                await age_tokens(database, hours * HOUR + timedelta(milliseconds=1))
                ends = {token: end - hours for token, end in ends.items()}
        found = await list_valid_tokens(database, *made)
        assert not [k for k in found if ends[k.token.id] <= 0 or k.token.id in revoked]
        replaced = [k.token.replaces for k in found if k.token.replaces]
        assert len(replaced) == len(set(replaced))
        for k in made:
            assert (await find_token(database, k.text) is not None) == (k in found)

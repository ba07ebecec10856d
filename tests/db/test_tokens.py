"""Tokens in the database: their validity, rotation and revocation."""

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
from tests.support.tokens import (
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


async def get_row(database: Database, token: IssuedToken) -> Token:
    async with database.read() as session:
        stored = await session.get(Token, token.token.id)
    assert stored is not None
    return stored


async def test_token_is_found_by_its_exact_text_only(database: Database) -> None:
    token, other = await create_token(database, name="grafana"), await create_token(database)
    stored = await find_token(database, token.text)
    assert stored is not None
    assert tokens.to_identity(stored) == Identity(
        "token/grafana", Role.VIEWER, token_id=token.token.id
    )
    forged = PresentedToken(token.token.public_id, parse_token_text(other.text).secret_hash)
    async with database.read() as session:
        assert await tokens.find_valid_token(session, forged) is None
        assert (
            await tokens.find_valid_token(
                session, PresentedToken("nosuchkey0", other.token.secret_hash)
            )
            is None
        )


async def test_token_text_is_not_stored(database: Database) -> None:
    token = await create_token(database, name="grafana")
    rotated = await rotate_token(database, token.token)
    await revoke_token(database, "grafana")
    rows = await fetch_rows(
        database, "SELECT t::text FROM tokens t UNION ALL SELECT a::text FROM audit_log a"
    )
    assert len(rows) == 6
    for (line,) in rows:
        for issued in (token, rotated):
            assert issued.text[14:46] not in line
    audit_rows = await fetch_rows(database, "SELECT a::text FROM audit_log a")
    assert not [line for (line,) in audit_rows if token.token.secret_hash.hex() in line]


async def test_printed_token_shows_no_secret(database: Database) -> None:
    token = await create_token(database)
    for printed in (repr(token), str(token), repr(token.token)):
        assert token.token.public_id in printed
        assert token.text not in printed
        assert token.text[14:46] not in printed
        assert repr(token.token.secret_hash) not in printed


async def test_agent_token_has_the_identity_of_its_nodes(database: Database) -> None:
    token = await create_token(database, Role.AGENT, nodes=["gpu-1", "gpu-2"], name="rack-1")
    assert tokens.to_identity(token.token) == Identity(
        "token/rack-1", Role.AGENT, frozenset({"gpu-1", "gpu-2"}), token.token.id
    )


async def test_token_without_a_name_is_named_by_role_and_public_id(
    database: Database,
) -> None:
    token = await create_token(database, Role.OPERATOR)
    assert token.token.name == f"operator-{token.token.public_id}"


@pytest.mark.parametrize(
    ("role", "nodes"),
    [(Role.AGENT, []), (Role.VIEWER, ["gpu-1"]), (Role.ADMIN, ["gpu-1"]), (Role.ENROLMENT, [])],
)
async def test_token_with_a_role_and_nodes_that_do_not_fit_is_rejected(
    database: Database, role: Role, nodes: list[str]
) -> None:
    with pytest.raises(BadInput):
        await create_token(database, role, nodes=nodes)
    assert await fetch_rows(database, "SELECT * FROM tokens") == []


async def test_token_is_valid_until_it_expires(database: Database) -> None:
    token = await create_token(database, lifetime=HOUR)
    await age_tokens(database, HOUR - timedelta(seconds=30))
    assert await list_valid_tokens(database, token) == [token]
    assert await find_token(database, token.text) is not None
    await age_tokens(database, timedelta(seconds=31))
    assert await list_valid_tokens(database, token) == []
    assert await find_token(database, token.text) is None


async def test_token_without_a_lifetime_never_expires(database: Database) -> None:
    token = await create_token(database, lifetime=None)
    await age_tokens(database, 10_000 * DAY)
    assert await list_valid_tokens(database, token) == [token]


async def test_ended_tokens_are_found_in_one_statement_for_any_number(
    database: Database,
) -> None:
    issued = [await create_token(database) for _ in range(3)]
    await revoke_token(database, issued[1].token.public_id)
    unknown = [uuid4() for _ in range(40_000)]
    async with database.read() as session:
        ended = await tokens.find_ended_tokens(
            session, [*(token.token.id for token in issued), *unknown]
        )
    assert ended == {issued[1].token.id, *unknown}


async def test_revoked_token_is_no_longer_found(database: Database) -> None:
    token, other = await create_token(database), await create_token(database)
    assert await revoke_token(database, token.token.public_id) == {token.token.id}
    assert await find_token(database, token.text) is None
    assert await list_valid_tokens(database, token, other) == [other]
    with pytest.raises(TokenNotFound) as rejection:
        await revoke_token(database, token.token.public_id)
    assert rejection.value.details == {"token": token.token.public_id}


async def test_revoking_a_name_revokes_all_tokens_of_that_name(database: Database) -> None:
    named = [await create_token(database, name="grafana") for _ in range(2)]
    named.append(await rotate_token(database, named[0].token))
    other = await create_token(database, name="grafana2")
    assert await revoke_token(database, "grafana") == {token.token.id for token in named}
    assert await list_valid_tokens(database, *named, other) == [other]


async def test_rotation_leaves_both_tokens_valid_for_the_overlap(database: Database) -> None:
    old = await create_token(database, Role.AGENT, nodes=["gpu-1"], name="gpu-1", lifetime=10 * DAY)
    new = await rotate_token(database, old.token)
    assert await list_valid_tokens(database, old, new) == [old, new]
    assert tokens.to_identity(new.token) == Identity(
        "token/gpu-1", Role.AGENT, frozenset({"gpu-1"}), new.token.id
    )
    assert new.token.replaces == old.token.id
    assert new.token.expires_at == new.token.created_at + 10 * DAY
    assert (await get_row(database, old)).expires_at == new.token.created_at + HOUR
    await age_tokens(database, HOUR)
    assert await list_valid_tokens(database, old, new) == [new]


async def test_rotation_does_not_extend_the_old_token(database: Database) -> None:
    old = await create_token(database, lifetime=HOUR)
    await rotate_token(database, old.token, overlap=DAY)
    assert (await get_row(database, old)).expires_at == old.token.expires_at


async def test_rotated_token_without_expiry_ends_after_the_overlap(database: Database) -> None:
    old = await create_token(database, lifetime=None)
    new = await rotate_token(database, old.token)
    assert new.token.expires_at is None
    await age_tokens(database, HOUR)
    assert await list_valid_tokens(database, old, new) == [new]


async def test_rotation_whose_response_was_lost_can_be_repeated(database: Database) -> None:
    old = await create_token(database, lifetime=10 * DAY)
    lost = await rotate_token(database, old.token)
    ends = (await get_row(database, old)).expires_at
    new = await rotate_token(database, old.token)
    assert await list_valid_tokens(database, old, lost, new) == [old, new]
    assert (await get_row(database, old)).expires_at == ends, "no longer than the first overlap"


async def test_token_whose_successor_was_used_is_not_rotated_again(database: Database) -> None:
    old = await create_token(database)
    new = await rotate_token(database, old.token)
    await use_tokens(database, new)
    with pytest.raises(Forbidden) as rejection:
        await rotate_token(database, old.token)
    assert rejection.value.details == {"token": new.token.public_id}
    assert await list_valid_tokens(database, old, new) == [old, new]
    await revoke_token(database, new.token.public_id)
    assert (await rotate_token(database, old.token)).token.replaces == old.token.id


async def test_revoked_or_expired_token_is_not_rotated(database: Database) -> None:
    revoked, expired = await create_token(database), await create_token(database, lifetime=HOUR)
    await revoke_token(database, revoked.token.public_id)
    await age_tokens(database, HOUR)
    for dead in (revoked, expired):
        with pytest.raises(Forbidden):
            await rotate_token(database, dead.token)
    assert await fetch_rows(database, "SELECT count(*) FROM tokens") == [(2,)]


async def test_enrolment_token_is_not_rotated(database: Database) -> None:
    token = await create_enrolment(database)
    with pytest.raises(BadInput):
        await rotate_token(database, token.token)


async def test_concurrent_rotations_leave_one_valid_successor(database: Database) -> None:
    old = await create_token(database)
    successors = await asyncio.gather(*(rotate_token(database, old.token) for _ in range(8)))
    assert len(await list_valid_tokens(database, *successors)) == 1
    assert await list_valid_tokens(database, old) == [old]


async def test_last_use_never_moves_back(database: Database) -> None:
    token = await create_token(database)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for instant, recorded in [
        (noon, noon),
        (noon - HOUR, noon),
        (noon + HOUR, noon + HOUR),
    ]:
        async with database.write() as session:
            await tokens.record_uses(session, {token.token.id: instant, uuid4(): instant})
        assert (await get_row(database, token)).last_used_at == recorded


async def test_use_is_never_recorded_later_than_now(database: Database) -> None:
    token = await create_token(database)
    async with database.write() as session:
        await tokens.record_uses(session, {token.token.id: datetime(2100, 1, 1, tzinfo=UTC)})
    [(is_past,)] = await fetch_rows(database, "SELECT last_used_at <= now() FROM tokens")
    assert is_past


async def test_recording_uses_skips_locked_tokens(database: Database) -> None:
    locked, free = await create_token(database), await create_token(database)
    async with database.write() as session:
        await session.execute(
            text("SELECT 1 FROM tokens WHERE id = :id FOR UPDATE"), {"id": locked.token.id}
        )
        async with asyncio.timeout(5):
            await use_tokens(database, locked, free)
    assert (await get_row(database, locked)).last_used_at is None
    assert (await get_row(database, free)).last_used_at is not None


async def test_recording_a_use_updates_no_index(database: Database) -> None:
    issued = [await create_token(database) for _ in range(3)]
    async with database.write() as session:
        await tokens.record_uses(
            session, {token.token.id: datetime(2026, 1, 1, tzinfo=UTC) for token in issued}
        )
        query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        counts = await session.execute(text(f"{query} WHERE relname = 'tokens'"))
        assert counts.one() == (3, 3)


@pytest.mark.parametrize("include_ended", [False, True])
async def test_tokens_are_listed_newest_first_in_pages(
    database: Database,
    include_ended: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    issued = []
    for n in range(5):
        issued.append(await create_token(database, name=f"key-{n}"))
        await age_tokens(database, timedelta(seconds=1))
    await revoke_token(database, "key-3")
    expected = [f"key-{n}" for n in (4, 3, 2, 1, 0) if include_ended or n != 3]
    listed: list[str] = []
    after = None
    while True:
        async with database.read() as session:
            page = await tokens.list_tokens(
                session, first=2, after=after, include_ended=include_ended
            )
        listed += [token.name for token in page.rows]
        if not page.has_next:
            break
        after = tokens.TOKEN_KEYSET.encode_cursor(page.rows[-1].created_at, page.rows[-1].id)
    assert listed == expected


async def test_revoked_token_is_not_found_by_public_id(database: Database) -> None:
    token = await create_token(database)
    async with database.read() as session:
        assert (await tokens.get_token(session, token.token.public_id)).id == token.token.id
    await revoke_token(database, token.token.public_id)
    async with database.read() as session:
        with pytest.raises(TokenNotFound):
            await tokens.get_token(session, token.token.public_id)


async def purge(database: Database, batch: int = 100) -> int:
    async with database.write() as session:
        return await tokens.purge_tokens(session, keep=30 * DAY, batch=batch)


async def test_long_ended_tokens_are_purged_in_batches(database: Database) -> None:
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
    remaining = {id_ for (id_,) in await fetch_rows(database, "SELECT id FROM tokens")}
    assert remaining == {forever.token.id, recent.token.id}


async def test_every_change_of_a_token_is_in_the_audit_log(database: Database) -> None:
    token = await create_token(database, name="grafana")
    new = await rotate_token(database, token.token)
    await revoke_token(database, new.token.public_id)
    audit_rows = await fetch_rows(
        database,
        "SELECT actor, action, subject, before ->> 'public_id', after ->> 'public_id'"
        " FROM audit_log ORDER BY id",
    )
    old_id, new_id = token.token.public_id, new.token.public_id
    assert audit_rows == [
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
async def test_any_history_leaves_at_most_one_valid_successor_and_no_token_past_its_end(
    database: Database, steps: list[tuple[str, int, int]]
) -> None:
    async with database.write() as session:
        await session.execute(text("DELETE FROM tokens"))
    issued = [await create_token(database, lifetime=2 * DAY)]
    ends = {issued[0].token.id: 48.0}  # hours from now at most
    revoked = set()
    for step, index, hours in steps:
        token = issued[index % len(issued)]
        match step:
            case "rotate":
                try:
                    new = await rotate_token(database, token.token, overlap=hours * HOUR)
                except Forbidden:
                    continue
                issued.append(new)
                ends[token.token.id] = min(ends[token.token.id], hours)
                ends[new.token.id] = 48.0
            case "revoke":
                if await list_valid_tokens(database, token):
                    await revoke_token(database, token.token.public_id)
                revoked.add(token.token.id)
            case "use":
                await use_tokens(database, token)
            case "wait":
                await age_tokens(database, hours * HOUR + timedelta(milliseconds=1))
                ends = {token_id: end - hours for token_id, end in ends.items()}
        valid = await list_valid_tokens(database, *issued)
        assert not [
            token for token in valid if ends[token.token.id] <= 0 or token.token.id in revoked
        ]
        replaced = [token.token.replaces for token in valid if token.token.replaces]
        assert len(replaced) == len(set(replaced))
        for token in issued:
            assert (await find_token(database, token.text) is not None) == (token in valid)


async def test_a_token_whose_used_successor_has_expired_is_not_rotated_again(
    database: Database,
) -> None:
    old = await create_token(database)
    new = await rotate_token(database, old.token, overlap=HOUR * 20)
    await use_tokens(database, new)
    newest = await rotate_token(database, new.token)
    await use_tokens(database, newest)
    await age_tokens(database, HOUR * 2)
    assert await list_valid_tokens(database, old, new, newest) == [old, newest]
    with pytest.raises(Forbidden):
        await rotate_token(database, old.token)

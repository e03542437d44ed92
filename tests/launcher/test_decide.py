"""The supervisor's decisions: a table of cases, and a world in which nodes fail at random."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import decide
from launcher.breaker import BreakerPolicy, Record
from launcher.decide import (
    Cause,
    End,
    Epoch,
    Finish,
    GiveUp,
    History,
    Node,
    Observed,
    Phase,
    Policy,
    Start,
    Stop,
    Wait,
    Wishes,
    next_action,
)
from launcher.election import Strategy

BREAKER = BreakerPolicy(allowed=1, hold_initial=20, hold_max=300, forgive_after=600)
POLICY = Policy("health_based", BREAKER, 0.5, 30.0, 5.0, 3600.0)
NODES = tuple(Node(name) for name in ("mini1", "mini2", "master"))
ALL = ("mini1", "mini2", "master")
SERVED = History(ever_ready=True, last_leader="mini1", ready_epoch=1)


def down(cause: Cause, at: float = 100.0, **history: object) -> History:
    return replace(SERVED, last=End(at, cause, "it broke", ALL), **history)  # type: ignore[arg-type]


def serving(**fields: object) -> Epoch:
    epoch = Epoch(ALL, Phase.READY, ready_at=10.0, idle_since=20.0)
    return replace(epoch, **fields)  # type: ignore[arg-type]


def seen(now: float = 100.0, **fields: object) -> Observed:
    return replace(Observed(now, NODES), **fields)  # type: ignore[arg-type]


def held(name: str, until: float, failures: int = 2) -> Node:
    return Node(name, record=Record(failures, 90.0, until))


# nothing runs


def test_at_first_all_nodes_start() -> None:
    assert next_action(seen(), POLICY) == Start(ALL)


def test_a_first_start_that_fails_is_the_end() -> None:
    history = History(last=End(99.0, Cause.NEVER_STARTED, "port 8000 is taken", ALL))
    assert next_action(seen(history=history), POLICY) == GiveUp("port 8000 is taken")


def test_after_a_death_all_start_again_at_once_and_another_leads() -> None:
    nodes = (replace(NODES[0], record=Record(1, 100.0)), *NODES[1:])
    action = next_action(seen(nodes=nodes, history=down(Cause.DIED)), POLICY)
    assert action == Start(("mini2", "mini1", "master"))


def test_who_can_not_be_reached_takes_no_part() -> None:
    nodes = (replace(NODES[0], up=False), *NODES[1:])
    action = next_action(seen(nodes=nodes, history=down(Cause.DIED)), POLICY)
    assert action == Start(("mini2", "master"))


def test_who_failed_too_often_takes_no_part() -> None:
    nodes = (NODES[0], held("mini2", 130.0), NODES[2])
    action = next_action(seen(nodes=nodes, history=down(Cause.DIED)), POLICY)
    assert action == Start(("mini1", "master"))


def test_starts_that_fail_in_a_row_are_further_and_further_apart() -> None:
    waits = []
    for failed in (1, 2, 3, 20):
        action = next_action(seen(history=down(Cause.NEVER_STARTED, failed_starts=failed)), POLICY)
        assert isinstance(action, Wait)
        waits.append(action.until - 100.0)
    assert waits == [0.5, 1.0, 2.0, 30.0]


def test_a_model_that_does_not_fit_waits_for_more_nodes() -> None:
    nodes = (*NODES[:2], replace(NODES[2], up=False))
    history = decide.after(SERVED, End(99.0, Cause.TOO_FEW, "needs 8 GB", ("mini1", "mini2")))
    action = next_action(seen(nodes=nodes, history=history), POLICY)
    assert isinstance(action, Wait)
    assert action.permanent
    assert action.reason == "needs 8 GB; waiting for master"
    # One of the two is not tried either, and all three are.
    fewer = (NODES[0], *(replace(node, up=False) for node in NODES[1:]))
    assert isinstance(next_action(seen(nodes=fewer, history=history), POLICY), Wait)
    assert next_action(seen(history=history), POLICY) == Start(ALL)


def test_without_any_node_the_reason_names_them() -> None:
    nodes = (replace(NODES[0], up=False), held("mini2", 130.0), replace(NODES[2], up=False))
    action = next_action(seen(nodes=nodes, history=down(Cause.DIED)), POLICY)
    assert action == Wait(130.0, "mini1, master can't be reached and mini2 failed too often")


def test_nodes_that_can_not_be_reached_may_come_back() -> None:
    """Requests wait for them: for seconds even all of them may be out of reach."""
    nodes = tuple(replace(node, up=False) for node in NODES)
    action = next_action(seen(nodes=nodes, history=down(Cause.DIED)), POLICY)
    assert isinstance(action, Wait)
    assert not action.permanent
    assert action.reason == "mini1, mini2, master can't be reached"


def test_a_stop_is_the_end() -> None:
    assert next_action(seen(wishes=Wishes(stop=True)), POLICY) == Finish()


# an epoch runs


def test_a_cluster_that_works_is_left_alone() -> None:
    assert isinstance(next_action(seen(epoch=serving(), history=SERVED), POLICY), Wait)


def test_a_fault_ends_the_epoch_at_once() -> None:
    action = next_action(seen(epoch=serving(fault="rank 1 is silent")), POLICY)
    assert action == Stop("rank 1 is silent", at_once=True)


def test_an_epoch_that_ends_is_waited_for() -> None:
    epoch = serving(phase=Phase.ENDING, fault="rank 1 is silent")
    assert isinstance(next_action(seen(epoch=epoch, wishes=Wishes(stop=True)), POLICY), Wait)


def test_the_operators_leader_takes_over_at_once() -> None:
    epoch = serving(idle_since=None)
    action = next_action(seen(epoch=epoch, wishes=Wishes(leader="master")), POLICY)
    assert action == Stop("master is to lead")
    led = serving(order=("master", "mini1", "mini2"))
    assert isinstance(next_action(seen(epoch=led, wishes=Wishes(leader="master")), POLICY), Wait)


def test_a_leader_that_is_not_there_is_waited_for() -> None:
    nodes = (*NODES[:2], replace(NODES[2], up=False))
    epoch = serving(order=("mini1", "mini2"))
    observed = seen(epoch=epoch, nodes=nodes, wishes=Wishes(leader="master"))
    assert isinstance(next_action(observed, POLICY), Wait)


def test_a_node_that_is_back_is_taken_in_when_it_is_quiet() -> None:
    two = ("mini1", "mini2")
    busy = next_action(seen(epoch=serving(order=two, idle_since=None)), POLICY)
    assert isinstance(busy, Wait)
    soon = next_action(seen(epoch=serving(order=two, idle_since=98.0)), POLICY)
    assert soon == Wait(103.0)
    quiet = next_action(seen(epoch=serving(order=two, idle_since=95.0)), POLICY)
    assert quiet == Stop("master can take part")


def test_more_nodes_that_are_too_few_all_the_same_change_nothing() -> None:
    history = replace(SERVED, too_small=(frozenset(ALL),))
    action = next_action(seen(epoch=serving(order=("mini1",)), history=history), POLICY)
    assert isinstance(action, Wait)


def test_the_leader_rotates_in_its_time_when_it_is_quiet() -> None:
    policy = replace(POLICY, strategy="round_robin", rotation_interval=50.0)
    assert next_action(seen(40.0, epoch=serving()), policy) == Wait(60.0)
    assert next_action(seen(60.0, epoch=serving()), policy) == Stop("the leader rotates")
    by_hand = seen(60.0, epoch=serving(), wishes=Wishes(leader="mini1"))
    assert isinstance(next_action(by_hand, policy), Wait)


# a world


def _live(steps: list[tuple[float, str, str]]) -> list[tuple[float, decide.Action]]:
    """Every action of a supervisor in which, one after the other, what `steps` say happens to a node."""
    now, history = 0.0, History(ever_ready=True)
    records: dict[str, Record] = {}
    up = dict.fromkeys(ALL, True)
    epoch: Epoch | None = None
    actions: list[tuple[float, decide.Action]] = []

    def act() -> decide.Action:
        nodes = tuple(Node(n, up[n], records.get(n, Record())) for n in ALL)
        action = next_action(Observed(now, nodes, epoch, history), POLICY)
        actions.append((now, action))
        return action

    def settle() -> None:
        """Until it waits."""
        nonlocal epoch, history, now
        for _ in range(50):
            action = act()
            if isinstance(action, Start):
                assert epoch is None, "never two at once"
                epoch = Epoch(action.order, Phase.READY, now, now)
                history = decide.ready(history, len(actions))
            elif isinstance(action, Stop):
                assert epoch is not None
                history = decide.after(history, End(now, Cause.STOPPED, action.reason, epoch.order))
                epoch = None
            else:
                return
        raise AssertionError("it never comes to rest")

    settle()
    for seconds, name, what in steps:
        now += seconds
        if what in ("up", "gone"):
            up[name] = what == "up"
        if epoch is not None and name in epoch.order and what != "up":
            cause = Cause.NEVER_STARTED if what == "no start" else Cause.DIED
            records = decide.blame(records, name, BREAKER, now)
            history = decide.after(history, End(now, cause, what, epoch.order))
            epoch = None
        settle()
    # In the end, everybody who is up takes part.
    for _ in range(60):
        now += decide.LOOK_AGAIN
        settle()
    assert epoch is None or set(epoch.order) == {name for name in ALL if up[name]}
    assert (epoch is None) == (not any(up.values()))
    return actions


what_happens = st.lists(
    st.tuples(
        st.floats(0.01, 200),
        st.sampled_from(ALL),
        st.sampled_from(["died", "gone", "up", "no start"]),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(what_happens)
def test_whatever_happens_there_is_one_epoch_of_nodes_that_are_there(
    steps: list[tuple[float, str, str]],
) -> None:
    _live(steps)


@settings(deadline=None)
@given(what_happens)
def test_the_same_observations_give_the_same_actions(steps: list[tuple[float, str, str]]) -> None:
    assert _live(steps) == _live(steps)


def test_a_node_that_was_taken_out_of_the_configuration_leaves_at_an_idle_moment() -> None:
    left = NODES[:2]
    busy = seen(epoch=serving(idle_since=None), nodes=left, history=SERVED)
    assert isinstance(next_action(busy, POLICY), Wait)
    idle = replace(busy, epoch=serving())
    assert next_action(idle, POLICY) == Stop("master no longer belongs to it")


def test_who_is_new_in_the_configuration_is_taken_in_with_whom_has_left() -> None:
    other = (*NODES[:2], Node("mini3"))
    action = next_action(seen(epoch=serving(), nodes=other, history=SERVED), POLICY)
    assert action == Stop("master no longer belongs to it, mini3 can take part")


def test_a_ring_is_not_ended_for_one_that_is_known_to_be_too_small() -> None:
    without = seen(
        epoch=serving(), nodes=NODES[:2], history=replace(SERVED, too_small=(frozenset(ALL[:2]),))
    )
    kept = next_action(without, POLICY)
    assert isinstance(kept, Wait)
    assert kept.reason == "master can't leave: on mini1, mini2 the model does not fit"
    led = replace(without, wishes=Wishes(leader="mini2"))
    assert isinstance(next_action(led, POLICY), Wait)
    rotating = replace(POLICY, strategy="round_robin", rotation_interval=1.0)
    assert isinstance(next_action(without, rotating), Wait)
    # Somebody new may make up for it.
    more = replace(without, nodes=(*NODES[:2], Node("mini3")))
    assert isinstance(next_action(more, POLICY), Stop)


def test_a_ring_is_not_ended_while_nobody_could_start_instead() -> None:
    other = seen(epoch=serving(), nodes=(Node("mini9", up=False),), history=SERVED)
    kept = next_action(other, POLICY)
    assert isinstance(kept, Wait)
    assert kept.reason == "mini1, mini2, master can't leave: nobody else is there"


some_names = st.sets(st.sampled_from("abcde"), min_size=1)
some_nodes = st.dictionaries(
    st.sampled_from("abcde"), st.tuples(st.booleans(), st.floats(0, 200)), max_size=5
)


@settings(deadline=None, max_examples=300)
@given(
    some_nodes,
    some_names,
    st.lists(some_names.map(frozenset), max_size=4),
    st.sampled_from(["manual", "round_robin", "health_based", "load_based"]),
    st.none() | st.sampled_from("abcde"),
)
def test_a_ring_that_works_is_ended_unasked_only_for_one_that_can_start(
    known: dict[str, tuple[bool, float]],
    running: set[str],
    too_small: list[frozenset[str]],
    strategy: Strategy,
    leader: str | None,
) -> None:
    nodes = tuple(
        Node(name, up, Record(2, 0.0, held_until)) for name, (up, held_until) in known.items()
    )
    observed = Observed(
        100.0,
        nodes,
        Epoch(tuple(sorted(running)), Phase.READY, ready_at=1.0, idle_since=1.0),
        History(ever_ready=True, ready_epoch=1, too_small=tuple(too_small)),
        Wishes(leader=leader),
    )
    policy = replace(POLICY, strategy=strategy, rotation_interval=10.0)
    action = next_action(observed, policy)
    if not isinstance(action, Stop):
        assert isinstance(action, Wait)
        assert action.until > observed.now
        return
    assert observed.epoch is not None
    end = End(100.0, Cause.STOPPED, action.reason, observed.epoch.order)
    after = replace(observed, epoch=None, history=decide.after(observed.history, end))
    assert isinstance(next_action(after, policy), Start)

"""The coordinator's app under Flower's own engine, whose nodes have numbers and no names."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeAlias

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from coordinator.app import build_server_app
from coordinator.rounds import RunPlan
from core.errors import QuorumError, RunError

NODES_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.1

Settings: TypeAlias = Mapping[str, bool | float | int | str]


def build_engine_server_app(plan_of: Callable[[Settings], tuple[RunPlan, Path]]) -> ServerApp:
    """The app of ``build_server_app``, made when the run's configuration is known.

    Args:
        plan_of: From the run's configuration to the plan and its folder. The plan's roster names
            the members; the numbers of their nodes are found here.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        plan, folder = plan_of(context.run_config)
        members = {member.name: member for member in plan.roster.values()}
        timeout = plan.config.strategy.round_timeout_seconds
        nodes = find_sites(grid, members, timeout_seconds=timeout)
        roster = {node: members[name] for name, node in nodes.items()}
        build_server_app(replace(plan, roster=roster), folder)(grid, context)

    return app


def find_sites(
    grid: Grid,
    names: Iterable[str],
    *,
    timeout_seconds: float,
    nodes_seconds: float = NODES_SECONDS,
) -> dict[str, int]:
    """Asks every node which site it plays; each opens that site's data to answer.

    Args:
        grid: Any grid.
        names: The sites that are needed.
        timeout_seconds: A node has this long to answer.
        nodes_seconds: There must be as many nodes as sites within this time.

    Returns:
        The node of each site.

    Raises:
        QuorumError: A site has no node, or there are too few nodes.
        RunError: A node cannot open its site, or two play the same one.
    """
    wanted = sorted(names)
    nodes = _nodes(grid, len(wanted), nodes_seconds)
    messages = [
        grid.create_message(RecordDict(), MessageType.QUERY, node, "", timeout_seconds)
        for node in nodes
    ]
    found: dict[str, int] = {}
    for reply in grid.send_and_receive(messages, timeout=timeout_seconds):
        node, name = reply.metadata.src_node_id, _site_in(reply)
        if name in found:
            raise RunError(f"expected one node for each site, got {found[name]} and {node}: {name}")
        if name in wanted:
            found[name] = node
    if missing := [name for name in wanted if name not in found]:
        raise QuorumError(
            f"expected a node for each of {len(wanted)} sites within {timeout_seconds:g} seconds, "
            f"got none for {', '.join(missing[:6])}"
        )
    return found


def _nodes(grid: Grid, count: int, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() >= deadline:
            raise QuorumError(
                f"expected {count} nodes within {seconds:g} seconds, got {len(nodes)}",
                hint=f"flwr run --federation-config 'num-supernodes={count}'",
            )
        time.sleep(_POLL_SECONDS)
    return nodes


def _site_in(reply: Message) -> str:
    """The site that a node says it plays; empty where it plays none."""
    node = reply.metadata.src_node_id
    record = reply.content.get("node") if reply.has_content() else None
    name = record.get("site") if isinstance(record, ConfigRecord) else None
    if not isinstance(name, str):
        code = record.get("error") if isinstance(record, ConfigRecord) else "client-error"
        raise RunError(
            f"expected the name of node {node}'s site, got {ascii(code)[:60]}",
            hint="the node's own log says why",
        )
    return name

"""The client's app under Flower's own engine, where a node learns its site from its settings."""

import logging
from collections.abc import Callable, Mapping
from typing import TypeAlias

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import build_client_app
from client.site import Site, Workshop
from core.errors import CloisterError

logger = logging.getLogger(__name__)

Settings: TypeAlias = Mapping[str, bool | float | int | str]
OpenNode: TypeAlias = Callable[[Settings, Settings], tuple[Site, Workshop] | None]


def build_engine_client_app(open_node: OpenNode) -> ClientApp:
    """The app of ``build_client_app``, which also says whose node it is.

    The engine makes the app in one process and calls it in others, so it holds nothing but
    ``open_node``, and that must be a function that can be imported there.

    Args:
        open_node: From the run's and the node's configuration to the site and its workshop;
            ``None`` for a node that plays no site. It is called for each message.
    """
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        try:
            node = open_node(context.run_config, context.node_config)
            answer = ConfigRecord({"site": node[0].name if node else ""})
        except CloisterError as error:
            answer = ConfigRecord({"error": _logged(error, context)})
        return Message(RecordDict({"node": answer}), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        try:
            node = open_node(context.run_config, context.node_config)
        except CloisterError as error:
            raise RuntimeError(_logged(error, context)) from None
        if node is None:
            raise RuntimeError("a node without a site is never asked to train")
        site, workshop = node
        return build_client_app(lambda _: site, workshop)(message, context)

    return app


def _logged(error: CloisterError, context: Context) -> str:
    """The error's name, which may leave; its text may speak of files and records, and stays."""
    logger.error("node %d cannot open its site: %s", context.node_id, error)
    return error.code

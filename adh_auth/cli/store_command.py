"""``adh-auth store``: make a store's table, check the store, list its sessions."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..common.secret import Secret
from ..common.text import one_line
from ..errors import AdhAuthError, ConfigurationError
from ..store.whole_store import WholeStore, table_of, whole_store
from .terminal import echo, echo_json, paint

__all__ = ["store_command"]


def store_command(args: argparse.Namespace) -> int:
    """Run ``adh-auth store init``, ``check`` or ``list``, and return 0. Raises `AdhAuthError`."""
    if args.print_only and args.action != "init":
        raise ConfigurationError("--print belongs to store init", setting="print")
    store = whole_store(_named(args))
    _ACTIONS[args.action](args, store)
    return 0


def _named(args: argparse.Namespace) -> Any:
    if args.store is not None:
        return args.store
    url = os.environ.get("ADH_STORE")
    if not url:
        raise ConfigurationError("store is missing: pass store= or set ADH_STORE", setting="ADH_STORE")
    return Secret(url)


def _init(args: argparse.Namespace, store: WholeStore) -> None:
    table = table_of(store.name)
    if args.print_only:
        _print_table(args, store, table)
        return
    store.init()
    if args.json:
        echo_json({"store": store.name, "ready": True})
    elif table is None:
        echo(one_line(f"{store.name} needs no table: it is ready"))
    else:
        echo(one_line(f"{store.name} has its table. Who uses it needs SELECT, INSERT and UPDATE on it"))


def _print_table(args: argparse.Namespace, store: WholeStore, table: str | None) -> None:
    if args.json:
        echo_json({"store": store.name, "sql": table})
    elif table is None:
        echo(one_line(f"-- {store.name} needs no table"))
    else:
        echo(table, end="")
        echo("-- GRANT SELECT, INSERT, UPDATE ON adh_auth_session TO the users of your programs;")


def _check(args: argparse.Namespace, store: WholeStore) -> None:
    try:
        warnings = store.check()
    except AdhAuthError as error:
        if args.json:
            echo_json({"store": store.name, "good": False, "problem": error.message, "warnings": []})
        raise
    if args.json:
        echo_json({"store": store.name, "good": True, "problem": None, "warnings": warnings})
        return
    echo(one_line(f"{store.name} works: what is written there lasts{' but for this:' if warnings else ''}"))
    for warning in warnings:
        echo(paint(one_line(warning), "yellow"))


def _list(args: argparse.Namespace, store: WholeStore) -> None:
    sessions = store.sessions()
    if args.json:
        echo_json({"store": store.name, "sessions": sessions})
        return
    for session in sessions:
        echo(one_line(session))


_ACTIONS = {"init": _init, "check": _check, "list": _list}

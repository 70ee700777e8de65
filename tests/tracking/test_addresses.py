"""Test `finetune.tracking.addresses`."""

from __future__ import annotations

import time

import pytest

from finetune.tracking import addresses
from finetune.tracking.addresses import is_address, is_answering
from tests.tracking.helpers import free_port, silent_server, web_server


@pytest.mark.parametrize(("status", "answers"), [(200, True), (404, True), (401, True), (502, False), (503, False)])
def test_a_server_answers_unless_a_proxy_says_that_it_is_away(status: int, answers: bool) -> None:
    with web_server(status) as (address, _):
        assert is_answering(address) is answers


def test_the_question_holds_no_password() -> None:
    with web_server(200) as (address, seen):
        assert is_answering(address.replace("//", "//me:secret@"), "/health")
        assert is_answering(f"{address}/mlflow/", "/health")
    assert seen == ["/health None", "/mlflow/health None"]


def test_none_that_refuses_or_is_silent_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "PROBE_S", 0.2)
    assert not is_answering(f"http://127.0.0.1:{free_port()}")
    assert not is_answering("http://no such host")
    began = time.monotonic()
    with silent_server() as address:
        assert not is_answering(address)
    assert time.monotonic() - began < 5


def test_addresses_are_those_of_web_servers() -> None:
    assert [is_address(text) for text in ("http://a", "https://a", "sqlite:///a.db", "databricks")] == [
        True,
        True,
        False,
        False,
    ]

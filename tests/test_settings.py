"""The table of settings: defaults, checks, and who wins."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any

import pytest

from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.settings import SETTINGS, Settings
from flask_llmstream.testing import ManualClock


def test_every_row_of_the_table_can_be_read() -> None:
    settings = Settings()
    for setting in SETTINGS:
        assert re.fullmatch("[a-z_]+", setting.name)
        assert setting.key == "LLMSTREAM_" + setting.name.upper()
        assert setting.check(setting.default) and getattr(settings, setting.name) == setting.default
        assert setting.help.endswith(".") and setting.expected
    assert len({setting.name for setting in SETTINGS}) == len(SETTINGS)
    assert {setting.name for setting in SETTINGS} == set(Settings.__annotations__)


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("heartbeat_interval", [0, 0.5, 30], [-1, "15", None, True, float("inf"), float("nan")]),
        ("status_hold", [0, 2.5], [-0.1, "now"]),
        ("max_delay", [0, 1], [-1, [1]]),
        ("max_duration", [0, 600], [-1, float("inf")]),
        ("cancel_grace", [0, 5], [-1]),
        ("padding", [0, 2048, 65536, "auto"], [-1, 65537, 2.5, True, "2k", ["auto"]]),
        ("on_disconnect", ["cancel", "detach", 0, 30.5], ["ignore", -1, None, True, float("inf")]),
        ("expose_errors", [True, False], [0, "yes", None]),
        ("shielded_modules", [(), ["ldap3"], ("a", "b")], ["ldap3", [1], None]),
    ],
)
def test_value_is_checked(name: str, good: Any, bad: Any) -> None:
    for value in good:
        assert getattr(Settings(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(ConfigurationError) as caught:
            Settings(**{name: value})
        key = f"LLMSTREAM_{name.upper()}"
        assert caught.value.key == key and caught.value.value is value
        assert str(caught.value).startswith(f"{key} is {value!r}, expected ")


def test_unknown_setting_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="no setting 'heartbeat'.*heartbeat_interval"):
        Settings(heartbeat=3)


def test_configuration_is_read_and_overrides_win() -> None:
    config = {
        "LLMSTREAM_HEARTBEAT_INTERVAL": 5, "LLMSTREAM_PADDING": 10, "LLMSTREAM_OTHER": "x", "DEBUG": 1
    }
    settings = Settings.from_config(config, {"padding": 20})
    assert (settings.heartbeat_interval, settings.padding, settings.status_hold) == (5, 20, 2.0)
    with pytest.raises(ConfigurationError, match="LLMSTREAM_PADDING is 'x'"):
        Settings.from_config({"LLMSTREAM_PADDING": "x"})


def test_replacing_leaves_out_what_is_none_and_changes_no_other() -> None:
    settings = Settings(padding=10, max_delay=1)
    assert settings.replace() is settings.replace(padding=None) is settings
    replaced = settings.replace(padding=20, status_hold=None)
    assert (replaced.padding, replaced.max_delay, settings.padding) == (20, 1, 10)
    with pytest.raises(ConfigurationError):
        settings.replace(padding=-1)


def test_what_a_route_replaces_is_made_once() -> None:
    settings = Settings()
    once = settings.replace(padding=1, max_delay=0.5)
    assert settings.replace(padding=1, max_delay=0.5, status_hold=None) is once
    with pytest.raises(ConfigurationError):
        settings.replace(padding=True, max_delay=0.5)  # equal to the one above, and no number of bytes
    for padding in range(1000):
        assert settings.replace(padding=padding).padding == padding
    assert len(settings._replaced) < 100, "who makes up settings for each stream must not fill the memory"


def test_a_callable_for_one_stream_is_not_kept() -> None:
    settings = Settings()
    connection = ManualClock()
    held = weakref.ref(connection)
    assert settings.replace(release=connection.advance).release is not None
    del connection
    gc.collect()
    assert held() is None


def test_padding_can_go_by_the_client() -> None:
    fixed, by_client = Settings(padding=10), Settings(padding="auto")
    assert fixed.for_client("MSIE 8.0", "text/event-stream") is fixed
    app = "MyApp/1 CFNetwork/1410 Darwin/22"
    assert by_client.for_client(app, "text/event-stream").padding == 1024
    assert by_client.for_client(app, "application/x-ndjson").padding == 0
    assert by_client.for_client(None, "text/event-stream").padding == 0

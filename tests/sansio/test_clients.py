"""Who gets padding, by the name that clients give themselves."""

from __future__ import annotations

import pytest

from flask_llmstream.sansio.clients import padding_for

APPLE = "Mozilla/5.0 (%s) AppleWebKit/605.1.15 (KHTML, like Gecko) %s"
IPHONE = "iPhone; CPU iPhone OS %s like Mac OS X"
MAC = "Macintosh; Intel Mac OS X 10_15_7"
CHROME = "Mozilla/5.0 (%s) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/%s Safari/537.36%s"


@pytest.mark.parametrize(
    "user_agent, padding",
    [
        (None, 0),
        ("", 0),
        # Apple's network layer, with and without a browser around it
        ("MyApp/12 CFNetwork/1410.0.3 Darwin/22.6.0", 1024),
        (APPLE % (IPHONE % "17_4_1", "Version/17.4.1 Mobile/15E148 Safari/604.1"), 1024),
        (APPLE % (IPHONE % "18_1", "Version/18.1 Mobile/15E148 Safari/604.1"), 1024),
        (APPLE % (IPHONE % "18_2", "Version/18.2 Mobile/15E148 Safari/604.1"), 0),
        (APPLE % (IPHONE % "18_10", "Version/18.10 Mobile/15E148 Safari/604.1"), 0),
        (APPLE % (IPHONE % "18_6", "Version/26.0 Mobile/15E148 Safari/604.1"), 0),
        (APPLE % (IPHONE % "16_7", "CriOS/120.0.6099.119 Mobile/15E148 Safari/604.1"), 1024),
        (APPLE % ("iPad; CPU OS 12_5 like Mac OS X", "Mobile/15E148"), 1024),
        (APPLE % (MAC, "Version/17.6 Safari/605.1.15"), 1024),
        (APPLE % (MAC, "Version/18.1.1 Safari/605.1.15"), 1024),
        (APPLE % (MAC, "Version/18.3 Safari/605.1.15"), 0),
        (APPLE % (MAC, "Version/26.1 Safari/605.1.15"), 0),
        # before the browsers of today
        ("Mozilla/4.0 (compatible; MSIE 8.0; Windows NT 6.1; Trident/4.0)", 2304),
        ("Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; rv:11.0) like Gecko", 2304),
        (CHROME % ("Windows NT 10.0; Win64; x64", "70.0.3538.102", " Edge/18.19042"), 2304),
        (CHROME % ("Windows NT 5.1", "12.0.742.112", ""), 2304),
        ("Mozilla/5.0 (Linux; U; Android 4.0.3; de-de; GT-I9100) AppleWebKit/534.30 (KHTML, like Gecko)"
         " Version/4.0 Mobile Safari/534.30", 2304),
        # today's, and programs
        (CHROME % ("Windows NT 10.0; Win64; x64", "142.0.0.0", " Edg/142.0.0.0"), 0),
        (CHROME % ("Linux; Android 10; K", "120.0.0.0 Mobile", ""), 0),
        (CHROME % (MAC, "142.0.0.0", ""), 0),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0", 0),
        ("python-requests/2.32.3", 0),
        ("curl/8.5.0", 0),
        ("okhttp/4.12.0", 0),
        ("x" * 600 + " MSIE 8", 0),
    ],
)
def test_padding_goes_by_the_name(user_agent: str, padding: int) -> None:
    assert padding_for(user_agent) == padding


def test_apple_holds_nothing_that_is_no_text() -> None:
    app = "MyApp/12 CFNetwork/1410.0.3 Darwin/22.6.0"
    assert padding_for(app, "text/plain; charset=utf-8") == 1024
    assert padding_for(app, "application/x-ndjson") == 0
    assert padding_for("Trident/7.0", "application/x-ndjson") == 2304

"""What old clients do with the first bytes of a body, by the name that they give themselves.

==================================  ===========================================================  =======
client                              what it does                                                 padding
==================================  ===========================================================  =======
apps on NSURLSession (CFNetwork)    holds the first 512 bytes of ``text/*``, nothing of others   1024
Safari, and all browsers on iOS,    the same network layer; its WebKit before 18.2 also holds a  1024
before 18.2                         page's first bytes
Internet Explorer                   XDomainRequest and XMLHttpRequest hold 2 KiB                 2304
Edge before 79                      no EventSource; what stands in for it was written for        2304
                                    Internet Explorer's 2 KiB
Android's own browser, Chrome < 13  the same 2 KiB                                               2304
everything else                     nothing                                                      0
==================================  ===========================================================  =======

Decisions: 1. A name is a hint and nothing more: padding is a comment, which a client that needs none
skips. So the table is generous, and knows families rather than builds.
2. Where Apple's layer holds nothing, in types that are not ``text/*``, there is nothing to pad.
"""

from __future__ import annotations

import re
from typing import Optional, Pattern, Tuple

__all__ = ["padding_for"]

_APPLE = 1024
_OLD = 2304

#: The first that fits counts.
_TABLE: Tuple[Tuple[Pattern[str], int], ...] = tuple(
    (re.compile(pattern), padding)
    for pattern, padding in (
        (r"MSIE [1-9]|Trident/", _OLD),
        (r" Edge/1[2-8]\.", _OLD),  # those on Chromium write "Edg/"
        (r"Chrome/([1-9]|1[0-2])\.", _OLD),
        (r"Android [1-4]\..* Version/[1-4]\.", _OLD),
        # An app that names nobody else: "MyApp/12 CFNetwork/1410.0.3 Darwin/22.6.0".
        (r"CFNetwork/", _APPLE),
        # iOS counts, not the browser: there they are all WebKit. Since iOS 26 the system part says 18_6
        # for ever, and Version/ says which.
        (r"\((?:iPhone|iPad|iPod).* OS (?:[1-9]|1[0-7]|18_[01])(?:_\d+)* like Mac OS X", _APPLE),
        (r"Macintosh.* Version/(?:[1-9]|1[0-7]|18\.[01])(?:\.\d+)* (?:Mobile/\w+ )?Safari/", _APPLE),
    )
)


def padding_for(user_agent: Optional[str], content_type: str = "text/event-stream") -> int:
    """Return the length in bytes that the first comment needs for this client; mostly 0.

    :param user_agent: the field of that name, as the client has sent it.
    :param content_type: of the stream. Defaults to that of an event stream.
    """
    if not user_agent:
        return 0
    # What nobody's name is as long as is not searched: it is somebody else's text.
    name = user_agent[:512]
    for pattern, padding in _TABLE:
        if pattern.search(name):
            return padding if padding != _APPLE or content_type.startswith("text/") else 0
    return 0

"""Packages of npm as single files that a browser can load, made once by esbuild and kept beside them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Dict

#: React, its DOM and the AI SDK in one file: all of them must see the same React. Its own package
#: is CommonJS, whose names must be said one by one.
_ENTRY = """
export {{
  createContext, createElement, Fragment, memo, StrictMode, useCallback, useContext, useEffect,
  useInsertionEffect, useLayoutEffect, useMemo, useReducer, useRef, useState, useSyncExternalStore, version,
}} from "react";
export {{ createRoot }} from "react-dom/client";
export {{ flushSync }} from "react-dom";
export {{ useChat }} from "{chat}";
export {{ DefaultChatTransport }} from "{ai}";
"""

#: Name of a bundle -> what its packages are called in tests/browser/package.json.
BUNDLES: Dict[str, Dict[str, str]] = {
    "react-18": {"react": "react-18", "react-dom": "react-dom-18", "ai": "ai", "chat": "@ai-sdk/react"},
    "react-19": {"react": "react", "react-dom": "react-dom", "ai": "ai-7", "chat": "ai-react-7"},
}


def bundle(name: str, packages: Path) -> Path:
    """Return the file of a bundle: React's development build, which checks what it is given.

    :param name: one of :data:`BUNDLES`.
    :param packages: the folder ``node_modules``.
    """
    names = BUNDLES[name]
    entry = _ENTRY.format(**names)
    lock = (packages.parent / "installed").read_bytes()
    digest = hashlib.sha256(json.dumps([names, entry]).encode() + lock).hexdigest()[:16]
    file = packages.parent / "bundles" / f"{name}-{digest}.js"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        made = file.with_suffix(f".{os.getpid()}")
        options = [
            "--bundle", "--format=esm", "--target=es2022", "--log-level=warning", f"--outfile={made}",
            '--define:process.env.NODE_ENV="development"', "--platform=browser",
        ]
        options += [f"--alias:{each}={names[each]}" for each in ("react", "react-dom") if names[each] != each]
        # Its own file, not the one in .bin, which installing without scripts leaves as a wrapper.
        command = [str(packages / ".bin" / "esbuild"), *options]
        subprocess.run(command, input=entry.encode(), cwd=str(packages.parent), check=True, timeout=60)
        made.rename(file)
    return file

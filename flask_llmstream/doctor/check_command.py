"""The command ``flask llmstream check``.

Importing this is cheap: it happens whenever an app is set up. What looks is imported when it looks.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Callable, Optional

import click

__all__ = ["make_check_command"]


def make_check_command(app: Any) -> click.Command:
    """Return the command for *app*."""

    @click.command("check")
    @click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
    @click.option("--gunicorn-config", metavar="FILE", help="Default: gunicorn.conf.py, if it is here.")
    @click.option("--worker-class", metavar="NAME", help="Wins over what gunicorn is configured with.")
    @click.option("--command", metavar="LINE", help="How it is served: gunicorn, uwsgi or waitress-serve.")
    @click.option("--procfile", metavar="FILE", help="The same, in the line web: of FILE.")
    @click.option("--uwsgi", metavar="FILE", help="It is served by uWSGI with this ini file.")
    @click.option(
        "--proxy-timeout", type=float, default=60.0, show_default=True, metavar="SECONDS",
        help="Silence after which the nearest proxy gives up.",
    )
    @click.option("--baseline", metavar="FILE", help="Leave out what was accepted in FILE.")
    @click.option("--write-baseline", metavar="FILE", help="Accept what is found: write it to FILE.")
    @click.option("--no-call", is_flag=True, help="Call no hook and no middleware; read their source only.")
    def check(**options: Any) -> None:
        """Find what in this app and its deployment will break streams.

        Nothing is served. Hooks and middleware are called with a response made for that.

        Exit status: 0 nothing found, or notes only; 1 findings; 2 there was no looking.
        """
        sys.exit(_run(app, **options))

    return check


def _run(
    app: Any,
    as_json: bool = False,
    gunicorn_config: Optional[str] = None,
    worker_class: Optional[str] = None,
    command: Optional[str] = None,
    procfile: Optional[str] = None,
    uwsgi: Optional[str] = None,
    proxy_timeout: float = 60.0,
    baseline: Optional[str] = None,
    write_baseline: Optional[str] = None,
    no_call: bool = False,
) -> int:
    from flask_llmstream.doctor import baseline as baselines
    from flask_llmstream.doctor import findings as findings_module
    from flask_llmstream.doctor.checks import check
    from flask_llmstream.doctor.collect import collect
    from flask_llmstream.doctor.serving import look_at_deployment

    say: Callable[[str], None] = click.echo
    try:
        if not 0 < proxy_timeout < float("inf"):
            raise ValueError(f"--proxy-timeout is {proxy_timeout}, expected seconds above 0")
        accepted = baselines.load_baseline(baseline) if baseline else baselines.Baseline([])
        deployment = look_at_deployment(gunicorn_config, worker_class, command, procfile, uwsgi)
        facts = collect(app, deployment, call=not no_call, proxy_timeout=proxy_timeout)
        everything = check(facts)
        if write_baseline:
            count = baselines.write_baseline(write_baseline, everything)
            say(f"{count} accepted in {write_baseline}.")
            return findings_module.EXIT_HEALTHY
    except (OSError, ValueError) as error:
        file = getattr(error, "filename", None)
        said = error if file is None else f"{file}: {getattr(error, 'strerror', error)}"
        click.echo(f"flask llmstream check: {said}", err=True)
        return findings_module.EXIT_FAILED
    new = accepted.new(everything)
    count = len(everything) - len(new)
    gone = accepted.gone(everything)
    served = _describe(deployment)
    if as_json:
        say(findings_module.as_json(new, app=app.name, served=served, accepted=count, gone=gone))
        return findings_module.exit_status(new)
    say(f"{app.name}: {len(facts.routes)} routes that stream, {len(facts.hooks)} hooks, {served}\n")
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org
    say(findings_module.as_text(new, colour).rstrip("\n"))
    if baseline:
        say(f"{count} accepted in {baseline}.")
    if gone:
        say(f"{gone} of what was accepted is gone; write the baseline anew.")
    return findings_module.exit_status(new)


def _describe(deployment: Any) -> str:
    if deployment is None:
        return "how it is served is not known: name --gunicorn-config, --command, --procfile or --uwsgi"
    if deployment.server != "gunicorn":
        return f"{deployment.server} ({deployment.source})"
    return f"gunicorn with {deployment.worker or 'unknown'} workers ({deployment.source})"

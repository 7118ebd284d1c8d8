"""The proxies that are tested: what each is configured with, and the command that runs it.

Decisions:

1. What is shipped is what is tested: the files of ``deploy/`` are taken as they are, with nothing
   replaced but addresses and, where a test says so, a timeout.
2. A variant "without" is the shipped file less the lines that are said to help.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Tuple

__all__ = ["DEPLOY", "PROXIES", "Setup", "program", "shipped"]

#: The files that the project ships.
DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"

#: The address of the app in all of them.
_APP = "127.0.0.1:8000"


class Setup(NamedTuple):
    """What a proxy's configuration is made of."""

    #: Where its files go.
    folder: Path
    #: Where it shall listen.
    port: int
    #: ``host:port`` of the app.
    app: str
    #: Paths of a certificate and its key, for variants that speak TLS.
    certificate: Optional[Tuple[str, str]] = None
    #: Seconds of silence after which it shall give up, in shipped files.
    patience: int = 60

    def write(self, name: str, text: str) -> str:
        """Write a file of that *name* and return its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


#: Writes a configuration and returns the command that runs the proxy with it.
Write = Callable[[Setup], List[str]]


def program(name: str) -> str:
    """Return the path of a program, which may be where only root looks for it.

    :raises AssertionError: it is not installed.
    """
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin")
    assert found, f"{name} is not installed; scripts/bootstrap test installs it"
    return found


def shipped(name: str, setup: Setup, without: str = "") -> str:
    """Return a file of ``deploy/`` with the address of the app in it.

    :param name: of the file.
    :param without: a pattern; lines that match are left out, and there must be some.
    """
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if without:
        lines = text.splitlines(True)
        kept = [line for line in lines if line.lstrip().startswith("#") or not re.search(without, line)]
        assert len(kept) < len(lines), f"{without!r} is not in {name}"
        text = "".join(kept)
    if setup.patience != 60 and "vcl" not in name:
        text, count = re.subn(r"(?m)^([^#\n]*timeout.*)\b60(s?;?)$", rf"\g<1>{setup.patience}\2", text)
        assert count, f"no timeout in {name}"
    return text.replace(_APP, setup.app)


# -- nginx ---------------------------------------------------------------------------------

_NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
    server {{
        listen 127.0.0.1:{port}{listen};
        {server}
        {location}
    }}
}}
"""

#: What somebody has who never thought of streams.
_BARE_LOCATION = "location / {{ proxy_pass http://{app}; }}"


def nginx(location: str = _BARE_LOCATION, http: str = "", tls: bool = False) -> Write:
    """Describe an nginx, with nothing said about streams by default.

    :param location: its location block; ``shipped`` for the shipped one.
    :param http: lines outside of the server block.
    """

    def write(setup: Setup) -> List[str]:
        server = listen = ""
        if tls:
            assert setup.certificate is not None
            listen = " ssl http2"
            server = "ssl_certificate {}; ssl_certificate_key {};".format(*setup.certificate)
        text = shipped("nginx.conf", setup) if location == "shipped" else location.format(app=setup.app)
        config = setup.write("nginx.conf", _NGINX.format(
            folder=setup.folder, port=setup.port, listen=listen, server=server, http=http, location=text
        ))
        return [program("nginx"), "-p", str(setup.folder), "-c", config]

    return write


# -- HAProxy -------------------------------------------------------------------------------


def haproxy(without: str = "", more: str = "", tls: bool = False) -> Write:
    """Describe the shipped HAProxy.

    :param without: a pattern of lines to leave out.
    :param more: lines for the front end.
    """

    def write(setup: Setup) -> List[str]:
        text = shipped("haproxy.cfg", setup, without)
        ours = "bind 127.0.0.1:8080"
        assert ours in text
        bind = f"bind 127.0.0.1:{setup.port}"
        if tls:
            assert setup.certificate is not None
            both = setup.write("both.pem", "".join(Path(each).read_text() for each in setup.certificate))
            bind += f" ssl crt {both} alpn h2,http/1.1"
        text = text.replace(ours, f"{bind}\n    {more}")
        base = setup.write("haproxy.cfg", "global\n    maxconn 256\n")
        return [program("haproxy"), "-db", "-f", base, "-f", setup.write("shipped.cfg", text)]

    return write


# -- Apache --------------------------------------------------------------------------------

_APACHE = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
LogLevel warn
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
Mutex default:{folder}
ErrorLog /dev/stderr
User nobody
{modules}
StartServers 1
ServerLimit 1
ThreadsPerChild 32
MaxRequestWorkers 32
GracefulShutdownTimeout 1
{server}
"""

_APACHE_MODULES = "mpm_event authz_core setenvif env filter deflate brotli proxy proxy_http ssl http2"
_APACHE_FOLDERS = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules")


def apache(
    location: str = 'ProxyPass "/" "http://{app}/"', server: str = "", tls: bool = False
) -> Write:
    """Describe an Apache, with nothing said about streams by default.

    :param location: its lines for the app; ``shipped`` for the shipped ones.
    :param server: lines before them.
    """

    def write(setup: Setup) -> List[str]:
        folder = next(each for each in _APACHE_FOLDERS if Path(each).is_dir())
        modules = [f"LoadModule {name}_module {folder}/mod_{name}.so" for name in _APACHE_MODULES.split()]
        lines = [server]
        if tls:
            assert setup.certificate is not None
            lines += ["SSLEngine on", "Protocols h2 http/1.1"]
            lines += ["SSLCertificateFile {}\nSSLCertificateKeyFile {}".format(*setup.certificate)]
        lines += [shipped("apache.conf", setup) if location == "shipped" else location.format(app=setup.app)]
        config = setup.write("apache.conf", _APACHE.format(
            folder=setup.folder, port=setup.port, modules="\n".join(modules), server="\n".join(lines)
        ))
        return [program("apache2"), "-f", config, "-DFOREGROUND"]

    return write


# -- Varnish -------------------------------------------------------------------------------


def varnish(include: bool = True, more: str = "", http2: bool = False) -> Write:
    """Describe a Varnish with its own VCL.

    :param include: begin with the shipped file.
    :param more: VCL of a user.
    """

    def write(setup: Setup) -> List[str]:
        host, _, port = setup.app.partition(":")
        vcl = f'vcl 4.1;\nbackend default {{ .host = "{host}"; .port = "{port}"; }}\n'
        if include:
            setup.write("flask-llmstream.vcl", shipped("varnish.vcl", setup))
            vcl += f'include "{setup.folder}/flask-llmstream.vcl";\n'
        vcl += more
        command = [program("varnishd"), "-F", "-j", "none", "-n", str(setup.folder / "varnish")]
        command += ["-f", setup.write("default.vcl", vcl), "-a", f"127.0.0.1:{setup.port}"]
        command += ["-p", f"between_bytes_timeout={setup.patience}"]
        command += ["-p", "feature=+http2"] if http2 else []
        return command + ["-s", "malloc,16m", "-T", "none"]

    return write


_GZIP = "gzip on; gzip_min_length 0; gzip_proxied any; gzip_types text/event-stream;"
_HTTP11 = 'location / {{ proxy_pass http://{app}; proxy_http_version 1.1; proxy_set_header Connection ""; }}'
_DEAF = "location / {{ proxy_pass http://{app}; proxy_ignore_headers X-Accel-Buffering; }}"

#: In many a VCL.
_COMPRESS = """
sub vcl_backend_response {
    if (beresp.http.Content-Type ~ "^text/") { set beresp.do_gzip = true; }
}
"""

#: Every variant that is tested, by name.
PROXIES = {
    "nginx": nginx(),
    "nginx-http11": nginx(_HTTP11),
    "nginx-gzip": nginx(http=_GZIP),
    "nginx-h2-tls": nginx(tls=True),
    "nginx-deaf": nginx(_DEAF),
    "nginx-deaf-gzip": nginx(_DEAF, _GZIP),
    "nginx-shipped": nginx("shipped"),
    "haproxy-shipped": haproxy(),
    "haproxy-without": haproxy("option http-no-delay"),
    "haproxy-compression": haproxy(more="compression algo gzip\n    compression type text/event-stream"),
    "haproxy-h2-tls": haproxy(tls=True),
    "apache": apache(),
    "apache-http10": apache(server="SetEnv downgrade-1.0 1\nSetEnv force-response-1.0 1"),
    "apache-deflate": apache(server="SetOutputFilter DEFLATE"),
    "apache-shipped": apache("shipped", "SetOutputFilter DEFLATE"),
    "apache-brotli": apache(server="SetOutputFilter BROTLI_COMPRESS"),
    "apache-brotli-shipped": apache("shipped", "SetOutputFilter BROTLI_COMPRESS"),
    "apache-h2-tls": apache("shipped", tls=True),
    "varnish": varnish(False),
    "varnish-gzip": varnish(False, _COMPRESS),
    "varnish-shipped": varnish(True, _COMPRESS),
    "varnish-h2-clear": varnish(http2=True),
}

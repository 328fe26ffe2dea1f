"""`kdsweep-ui`: MLflow's web interface on this machine, for the store to which `kdsweep` writes; or Optuna's."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, NoReturn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from kdsweep.system.errors import UserError, one_line, require
from kdsweep.system.exit_status import one_line_arguments
from kdsweep.system.masking import masked_text
from kdsweep.system.sqlite import driver_uri, sqlite_path, sqlite_uri
from kdsweep.tracking import ui_columns
from kdsweep.tracking.location import artifact_folder, correct_locations, require_store, store_uri

if TYPE_CHECKING:
    from types import FrameType

# Where optuna-dashboard listens by default, and where a study has its record.
OPTUNA_PORT = 8080
STUDIES, DATABASE = "studies", "optuna.db"

STOP_SECONDS = 10.0
POLL_SECONDS = 0.2
# Seconds for which the user waits for the address if the database is slow.
ANSWER_SECONDS = 5.0


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    made = argparse.ArgumentParser("kdsweep-ui", description=__doc__.partition(": ")[2] if __doc__ else None)
    made.add_argument("--uri", help="MLflow store (default: $MLFLOW_TRACKING_URI, else mlflow.db in the root folder)")
    made.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("KDSWEEP_HOME", ".")),
        help="folder of mlflow.db (default: $KDSWEEP_HOME, else the working directory)",
    )
    made.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s, this machine)")
    ports = f"{ui_columns.PORT}, or {OPTUNA_PORT} with --optuna"
    made.add_argument("--port", type=int, help=f"port; 0 takes a free one (default: {ports})")
    studies = f"optuna-dashboard instead, for a study in <root>/{STUDIES}/ (default: the latest) or Optuna's storage"
    made.add_argument("--optuna", nargs="?", const="", metavar="STUDY|URL", help=studies)
    made.add_argument("--no-browser", action="store_true", help="only print the address")
    return made


def main(arguments: list[str] | None = None) -> int:
    """Serves the UI until Ctrl-C or SIGTERM, and leaves no process behind; returns 2 for a wrong argument."""
    try:
        with one_line_arguments():
            options = parser().parse_args(arguments)
        if options.optuna is not None:
            return serve_optuna(
                optuna_storage(options.root, options.optuna),
                options.host,
                free_port(options.host, OPTUNA_PORT if options.port is None else options.port),
                browser=not options.no_browser,
            )
        uri = store_uri(options.uri, options.root)
        if uri.startswith(("http:", "https:")):
            print(f"The store is an MLflow server, which has its own UI: {masked_text(uri)}")
            return 0
        require_store(uri)
        path = sqlite_path(uri)
        if path is not None:
            correct_locations(path)
        port = free_port(options.host, ui_columns.PORT if options.port is None else options.port)
    except UserError as error:
        print(f"kdsweep-ui: {masked_text(one_line(error))}", file=sys.stderr)
        return 2
    return serve(uri, options.host, port, browser=not options.no_browser)


def free_port(host: str, port: int) -> int:
    """Returns `port`, or a free port if it is 0.

    Raises:
        UserError: Nothing can listen there (key "port").
    """
    require(0 <= port <= 65535, "0 <= port <= 65535", port, "port")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listening:
            return int(listening.getsockname()[1])
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UserError(f"Cannot listen on {host}:{port} ({reason}). Choose another with --port.", "port") from error


def serve(uri: str, host: str, port: int, browser: bool) -> int:
    """Runs `mlflow server` on a store until it ends or a signal asks for it; returns the exit status."""
    here, address = _reached_at(host, port)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    print(f"Starting MLflow's UI for {masked_text(uri)}", flush=True)
    server = subprocess.Popen(
        command(uri, host, port), env=environment(uri), start_new_session=True, preexec_fn=_end_with_parent
    )
    try:
        while server.poll() is None and not answers(here, port):
            time.sleep(POLL_SECONDS)
        found = viewed_experiment(here, port)
        if server.poll() is None:
            page = address if found is None else ui_columns.address(address, found)
            print(f"Open {page} (Ctrl-C stops it)", flush=True)
            if browser and _has_display():
                webbrowser.open(page)
        return server.wait()
    finally:
        end(server)


def optuna_storage(root: Path, study: str) -> str:
    """Returns the URL of Optuna's storage of a study.

    Args:
        root: The project folder.
        study: The study's name, or the URL itself; "" stands for the study of the folder that was written last.

    Raises:
        UserError: There is no such study, or optuna-dashboard isn't installed.
    """
    installed = importlib.util.find_spec("optuna_dashboard") is not None
    require(installed, "optuna-dashboard is installed", "none", "--optuna", "pip install 'kdsweep[dashboard]'")
    path = sqlite_path(study)
    if path is None and "://" in study:
        return study
    known = sorted((root / STUDIES).glob(f"*/{DATABASE}"), key=lambda found: found.stat().st_mtime)
    wanted = [path] if path is not None else [found for found in known if study in ("", found.parent.name)]
    if not wanted or not wanted[-1].is_file():
        names = ", ".join(found.parent.name for found in known) or "none"
        raise UserError(
            f"there is no study {study!r} in {root / STUDIES} (there are: {names}). Make one with `kdsweep "
            "sweep=alpha_tau`, or give --root, or the URL of its storage (hydra.sweeper.storage).",
            "--optuna",
        )
    return sqlite_uri(wanted[-1])


def serve_optuna(url: str, host: str, port: int, browser: bool) -> int:
    """Runs optuna-dashboard on a storage until a signal asks for its end; returns the exit status.

    It runs in this process, because the URL may hold a password, and every user can read command lines.
    """
    from optuna_dashboard import wsgi

    from kdsweep.execution.trial_link import open_storage

    class Server(ThreadingMixIn, WSGIServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    storage = open_storage(url)
    app = wsgi(storage)
    studies = [storage.get_study_id_from_name(study.study_name) for study in storage.get_all_studies()]
    page = f"{_reached_at(host, port)[1]}/dashboard{f'/studies/{studies[0]}' if len(studies) == 1 else ''}"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    with make_server(host, port, app, server_class=Server, handler_class=Quiet) as server:
        print(f"Open {page} (Ctrl-C stops it)", flush=True)
        if browser and _has_display():
            webbrowser.open(page)
        server.serve_forever()
    return 0


def _reached_at(host: str, port: int) -> tuple[str, str]:
    """Returns the name by which this machine reaches a server that listens on `host`, and the server's address."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return here, f"http://{f'[{here}]' if ':' in here else here}:{port}"


def command(uri: str, host: str, port: int) -> list[str]:
    """Returns the server's command line, for one worker that doesn't log each request."""
    words = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    words += ["--uvicorn-opts", "--log-level warning"]
    path = sqlite_path(uri)
    return words if path is None else [*words, "--artifacts-destination", str(artifact_folder(path))]


def environment(uri: str) -> dict[str, str]:
    """Returns the server's environment.

    It holds the store's URI, because a URI may hold a password, and every user of the machine can read command lines.
    """
    return {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Jobs serve language-model judges; without them the server takes a third of the time and memory to start.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": driver_uri(uri),
        "MLFLOW_REGISTRY_STORE_URI": driver_uri(uri),
    }


def answers(host: str, port: int) -> bool:
    """Returns whether an HTTP server answers; asks it directly, since it is on this machine, and not by a proxy."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/health")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def viewed_experiment(host: str, port: int) -> str | None:
    """Returns the id of the experiment with the latest run, among those with kdsweep's view; None if there is none."""
    try:
        having = {"max_results": 1000, "filter": f"tags.`{ui_columns.TAG}` LIKE '%'"}
        known = [found["experiment_id"] for found in _ask(host, port, "experiments/search", having)["experiments"]]
        latest = {"experiment_ids": known, "max_results": 1, "order_by": ["attributes.start_time DESC"]}
        (run,) = _ask(host, port, "runs/search", latest)["runs"]
        return str(run["info"]["experiment_id"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None


def _ask(host: str, port: int, path: str, question: dict[str, Any]) -> Any:
    """Returns the answer of MLflow's HTTP interface.

    Raises:
        ValueError: The answer is no JSON, as an error page may be.
    """
    connection = http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)
    # MLflow accepts this name as its own, whatever name of the machine it listens on.
    headers = {"Content-Type": "application/json", "Host": f"localhost:{port}"}
    try:
        connection.request("POST", f"/api/2.0/mlflow/{path}", json.dumps(question), headers)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def end(server: subprocess.Popen[bytes]) -> None:
    """Ends the server with all its workers, which form its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):  # SIGKILL is needed only if SIGTERM came during the start
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _end_with_parent() -> None:
    """Runs in the server's process: asks Linux for SIGTERM if kdsweep-ui is killed by a signal that it can't catch."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _has_display() -> bool:
    # Without a display Python would open a text browser in the terminal, over what was printed.
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


if __name__ == "__main__":
    sys.exit(main())

"""As much of Kubernetes' API as Snakemake's plugin calls, over HTTP; pods are processes here.

The container of a Job runs as a process of this machine in a new empty folder, which stands for
/workdir, with nothing of the environment but what the Job's secret says and what its image would.
Volumes are not mounted: their folders are folders of this machine. Images, limits and tolerations
are kept in the manifests, and mean nothing.
"""

import base64
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil


class Cluster:
    """The Jobs that were submitted, in order, and their pods."""

    def __init__(self, folder: Path, image: Mapping[str, str]) -> None:
        """`folder`: of the pods' folders and logs; `image`: the environment of every pod."""
        self.folder, self.image = folder, dict(image)
        self.manifests: list[dict[str, Any]] = []
        self.statuses: dict[str, int | None] = {}  # exit status by the Job's name; None: it runs
        self.secrets: dict[str, dict[str, str]] = {}
        self.started: Callable[[dict[str, Any], psutil.Popen], None] = lambda *_: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def kubeconfig(self) -> Path:
        """A file that leads the client here."""
        server = {"server": f"http://127.0.0.1:{self.server.server_port}"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": server}],
            "users": [{"name": "me", "user": {"token": "none"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps(content))
        return path

    def create(self, kind: str, manifest: dict[str, Any]) -> None:
        """Keep a secret, or start the pod of a Job."""
        name = manifest["metadata"]["name"]
        if kind == "secrets":
            values = manifest["data"].items()
            self.secrets[name] = {key: base64.b64decode(v).decode() for key, v in values}
            return
        self.manifests.append(manifest)
        self.statuses[name] = None
        threading.Thread(target=self.run, args=(name, manifest), daemon=True).start()

    def run(self, name: str, manifest: dict[str, Any]) -> None:
        """Run the container of a Job to its end."""
        container = container_of(manifest)
        environment = self.image | {e["name"]: self.secret(e) for e in container["env"]}
        folder = self.folder / name
        folder.mkdir()
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [*container["command"], *container["args"]]
            pod = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
            try:
                self.started(manifest, pod)
            finally:  # a Job without an end would be waited for
                self.statuses[name] = pod.wait()

    def secret(self, variable: dict[str, Any]) -> str:
        """The value of a variable that is in a secret."""
        reference = variable["valueFrom"]["secretKeyRef"]
        return self.secrets[reference["name"]][reference["key"]]

    def status(self, name: str) -> dict[str, Any]:
        """A Job, as the API describes it."""
        code = self.statuses[name]
        counts = {"active": 1} if code is None else {"failed" if code else "succeeded": 1}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "status": counts}

    def logs(self) -> str:
        """What all pods printed."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The only container of a Job."""
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    return container


def kill_pod(pod: psutil.Popen) -> None:
    """SIGKILL to everything in a pod, as when its node is gone."""
    for process in [pod, *pod.children(recursive=True)]:
        process.kill()


def handler_of(cluster: Cluster) -> type[BaseHTTPRequestHandler]:
    """The HTTP side of a cluster."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def answer(self, content: dict[str, Any]) -> None:
            """Send JSON."""
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def body(self) -> dict[str, Any]:
            """The JSON of a request."""
            return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")

        def do_POST(self) -> None:
            manifest = self.body()
            cluster.create(self.path.rpartition("/")[2], manifest)
            self.answer(manifest)

        def do_GET(self) -> None:
            if "/pods" in self.path:
                self.answer({"apiVersion": "v1", "kind": "PodList", "items": []})
            else:
                self.answer(cluster.status(self.path.split("/jobs/")[1].split("/")[0]))

        def do_DELETE(self) -> None:
            self.body()
            self.answer({"apiVersion": "v1", "kind": "Status", "status": "Success"})

    return Handler

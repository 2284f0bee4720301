"""What Modelwharf's serving is compared with: the same scikit-learn model behind other servers, one process each.

`python -m tests.bench.serving_rivals NAME FOLDER PORT` serves; FOLDER holds `model.joblib`.
"""

import os
import sys
from pathlib import Path
from typing import Any

STOCK = """
import bentoml, joblib, numpy as np

@bentoml.service(workers=1)
class Stock:
    def __init__(self):
        self.model = joblib.load({path!r})

    @bentoml.api
    def predict(self, rows: list[list[float]]) -> dict:
        probabilities = self.model.predict_proba(np.asarray(rows, np.float32))
        return {{"predictions": probabilities.argmax(axis=1).tolist(), "probabilities": probabilities.tolist()}}
"""


def fastapi_app(folder: Path) -> Any:
    """Return the usual FastAPI handler around a scikit-learn model."""
    import joblib
    import numpy as np
    from fastapi import FastAPI
    from pydantic import BaseModel

    model = joblib.load(folder / "model.joblib")

    class Body(BaseModel):
        rows: list[list[float]]

    app = FastAPI()

    # `async def` on purpose: for a model this fast it is quicker than FastAPI's thread pool.
    @app.post("/predict")
    async def predict(body: Body) -> dict[str, Any]:
        probabilities = model.predict_proba(np.asarray(body.rows, np.float32))
        return {"predictions": probabilities.argmax(axis=1).tolist(), "probabilities": probabilities.tolist()}

    return app


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send the body back: what HTTP alone costs."""
    if scope["type"] != "http":
        return
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


def command(name: str, folder: Path, port: int) -> list[str]:
    """Return the command that serves rival `name` on `port`."""
    here = [sys.executable, "-m", "tests.bench.serving_rivals", name, str(folder), str(port)]
    if name == "mlflow":
        wharf = Path(sys.executable).parent / "mlflow"
        return [str(wharf), "models", "serve", "-m", str(folder / "mlflow"), "--env-manager", "local", "-p", str(port)]
    if name == "bentoml":
        (folder / "stock.py").write_text(STOCK.format(path=str(folder / "model.joblib")))
        tool = [sys.executable, "-m", "bentoml", "serve", "stock:Stock", "--working-dir", str(folder)]
        return [*tool, "--port", str(port), "--host", "127.0.0.1", "--api-workers", "1"]
    return here


if __name__ == "__main__":
    import uvicorn

    name, folder, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    app = echo if name == "echo" else fastapi_app(folder)
    uvicorn.run(app, port=port, log_level="warning", access_log=False, lifespan="off")

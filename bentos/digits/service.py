"""digits as a BentoML service.

curl -d '{"rows": [[0, 0, 5, ...]]}' http://.../predict  ->  {"predictions": ["0"], "probabilities": [[...]], ...}
"""

import bentoml

from bentos.serving import Runtime, settings

runtime = Runtime("digits")


@bentoml.asgi_app(runtime, path="/", name="digits")  # POST /predict, the Swagger page, and its document
@bentoml.service(name="digits", **settings())  # /livez, /readyz and /metrics are BentoML's
class Digits:
    def __init__(self) -> None:
        if not runtime.ready:
            runtime.load_or_exit()

    async def __is_ready__(self) -> bool:
        return runtime.ready

    @bentoml.on_shutdown
    def close(self) -> None:
        runtime.close()

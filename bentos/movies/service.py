"""movies as a BentoML service.

curl -d '{"users": [1, 2], "k": 5}' http://.../predict  ->  {"predictions": [[{"item": 50, ...}, ...], ...], ...}
"""

import bentoml

from bentos.serving import Runtime, settings

runtime = Runtime("movies")


@bentoml.asgi_app(runtime, path="/", name="movies")  # POST /predict, the Swagger page, and its document
@bentoml.service(name="movies", **settings())  # /livez, /readyz and /metrics are BentoML's
class Movies:
    def __init__(self) -> None:
        if not runtime.ready:
            runtime.load_or_exit()

    async def __is_ready__(self) -> bool:
        return runtime.ready

    @bentoml.on_shutdown
    def close(self) -> None:
        runtime.close()

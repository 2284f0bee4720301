"""tumor as a BentoML service.

curl -d '{"rows": [{"mean_radius": 17.99, ...}]}' http://.../predict  ->  {"predictions": ["malignant"], ...}
"""

import bentoml

from bentos.serving import Runtime, settings

runtime = Runtime("tumor")


@bentoml.asgi_app(runtime, path="/", name="tumor")  # POST /predict, the Swagger page, and its document
@bentoml.service(name="tumor", **settings())  # /livez, /readyz and /metrics are BentoML's
class Tumor:
    def __init__(self) -> None:
        if not runtime.ready:
            runtime.load_or_exit()

    async def __is_ready__(self) -> bool:
        return runtime.ready

    @bentoml.on_shutdown
    def close(self) -> None:
        runtime.close()

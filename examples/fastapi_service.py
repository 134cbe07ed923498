"""An HTTP service: a photo in, a similarity map or upsampled features out.

    python examples/fastapi_service.py --port 8000
    curl -F photo=@photo.jpg "http://localhost:8000/similarity?row=120&column=80" -o map.png
    curl -F photo=@photo.jpg "http://localhost:8000/features?size=224" -o features.safetensors

Needs `pip install fastapi python-multipart uvicorn`.
"""

import argparse
import io
import threading
from collections.abc import Sequence

import torch
from fastapi import FastAPI, HTTPException, Response, UploadFile
from PIL import Image, UnidentifiedImageError
from safetensors.torch import save
from torch.nn import functional as F

import upfeat

LARGEST = 20_000_000  # bytes of an upload


def create_app(pipe: upfeat.Pipeline) -> FastAPI:
    """The service around a pipeline; one photo at a time is computed."""
    app = FastAPI(title="upfeat", summary="Sharp features of photos.")
    busy = threading.Lock()

    def run(photo: UploadFile, size: int) -> upfeat.PipelineOutput:
        content = photo.file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise HTTPException(413, f"the photo is larger than {LARGEST:,} bytes")
        try:
            image = Image.open(io.BytesIO(content)).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise HTTPException(422, f"this is no image that can be read: {error}") from error
        with busy, torch.no_grad():
            return pipe(image, output_size=size)

    @app.get("/")
    def about() -> dict[str, str]:
        return {"backbone": pipe.backbone.name, "upsampler": pipe.upsampler.info.name}

    # Plain functions, no coroutines: FastAPI runs them in threads, the loop stays free.
    @app.post("/similarity")
    def similarity(photo: UploadFile, row: int, column: int, size: int = 448) -> Response:
        """A grey PNG: how alike each pixel is to the one at row and column of that size."""
        sharp = F.normalize(run(photo, size).high, dim=0)  # (C, H, W)
        height, width = sharp.shape[1:]
        if not (0 <= row < height and 0 <= column < width):
            raise HTTPException(422, f"row and column must lie in {height} x {width}")
        alike = torch.einsum("c,chw->hw", sharp[:, row, column], sharp).clamp(0, 1)
        stream = io.BytesIO()
        Image.fromarray((alike * 255).round().to(torch.uint8).cpu().numpy()).save(stream, "PNG")
        return Response(stream.getvalue(), media_type="image/png")

    @app.post("/features")
    def features(photo: UploadFile, size: int = 224) -> Response:
        """A safetensors file with `low` (C, h, w) and `high` (C, H', W') in half precision."""
        out = run(photo, size)
        content = save({"low": out.low.half().contiguous(), "high": out.high.half().contiguous()})
        return Response(content, media_type="application/octet-stream")

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="upfeat/vit_compact_patch16")
    parser.add_argument("--upsampler", default="kin.upfeat")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(arguments)

    import uvicorn

    pipe = upfeat.Pipeline(given.backbone, given.upsampler, device=given.device)
    uvicorn.run(create_app(pipe), host=given.host, port=given.port)


if __name__ == "__main__":
    main()

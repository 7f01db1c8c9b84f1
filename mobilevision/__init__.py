"""The Python client of a mobilevision server: send pictures, get typed results, draw them.

    from mobilevision import VisionClient

    with VisionClient("localhost:50051") as client:
        for box in client.detect("street.jpg").boxes:
            print(box.label.name, box.label.score, box.x_min, box.y_min)

The package needs no part of the server but the generated protocol messages in `service.pb`.
"""

from mobilevision.client import CallFailed, VisionClient
from mobilevision.results import Box, Classification, Detections, Label, Result, Segmentation

__all__ = ["Box", "CallFailed", "Classification", "Detections", "Label", "Result", "Segmentation", "VisionClient"]

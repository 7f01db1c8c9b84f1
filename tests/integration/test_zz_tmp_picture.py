import json, time
from pathlib import Path
import pytest
from tests.integration.test_monitoring import stack  # noqa
pytestmark = [pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore")]

@pytest.mark.exhaustive
def test_picture(stack):
    import matplotlib
    matplotlib.use("Agg")
    from deploy.monitoring.picture import Source, draw, HERE
    time.sleep(20)
    import subprocess; subprocess.Popen(["true"]).wait()
    source = Source(f"http://{stack.prometheus}", 90, {"namespace": ".*", "model": ".*", "price_per_hour": "0.10", "__rate_interval": "8s"})
    for name in ("service", "models", "capacity"):
        draw(json.loads((HERE / "dashboards" / f"{name}.json").read_text()), source).savefig(f"/tmp/mon/{name}.png")

"""Networks: layers, backbones, heads and box arithmetic. Plain, scriptable torch."""

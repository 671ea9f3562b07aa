"""Earlier layers that an upsampled grid is made of."""

import pytest

from edje_jax.config.model import BackboneConfig, VisionConfig


@pytest.mark.parametrize(
    ("layers", "token_layer", "outputs"),
    [(12, -1, (8, 4)), (4, -1, (3, 1)), (12, -2, (7, 4)), (12, -7, (4, 2)), (24, -2, (15, 8))],
)
def test_earlier_layers_are_shares_of_the_depth_of_the_vision_tokens(layers, token_layer, outputs):
    """The output of layer n, of 0 to `layers`, is n - layers - 1 from the end."""
    vision = VisionConfig(num_hidden_layers=layers)
    backbone = BackboneConfig(vision=vision, token_layer=token_layer)
    found = tuple(layer + layers + 1 for layer in backbone.layers_for(4))
    assert found == outputs
    assert max(found) < layers + 1 + token_layer
    assert backbone.layers_for(2) == backbone.layers_for(4)[:1] and backbone.layers_for(1) == ()

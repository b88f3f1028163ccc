"""What the host's processor needs: nothing but its share of threads."""

from gyrfalcon.device.setup import Setup

SETUP = Setup(
    present=lambda host: True,
    check=lambda host: iter(()),
    num_cards=lambda host: 0,
    variables=lambda host: (),
)

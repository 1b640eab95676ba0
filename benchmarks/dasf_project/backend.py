"""What is called."""

import xarray
from decoding import decode
from demessaging import configure, main
from demessaging.serializers.xarray import encode_xarray

__all__ = ["echo", "empty"]


def empty(number: int = 0) -> int:
    """Do nothing.

    Parameters
    ----------
    number : int
        A number.

    Returns
    -------
    int
        The same.
    """
    return number


@configure(
    validators={"values": [decode]},
    serializers={"values": encode_xarray},
    return_validators=[decode],
    return_serializer=encode_xarray,
)
def echo(values: xarray.DataArray) -> xarray.DataArray:
    """Give back what came.

    Parameters
    ----------
    values : xarray.DataArray
        Numbers.

    Returns
    -------
    xarray.DataArray
        The same.
    """
    return values


if __name__ == "__main__":
    main(messaging_config={"topic": "bench", "max_payload_size": 2**31 - 1})

"""Where reports may be sent: this machine and private addresses, unless the user decides otherwise.

A name is looked up once, every address it has is judged, and those very addresses are what is connected to: a name
that later leads elsewhere (DNS rebinding) changes nothing.
"""

import ipaddress
import socket

# The blocks that are never routed on the internet and that one site has to itself. ``ipaddress.is_private`` will not
# do: it also holds documentation and benchmark blocks, and changes between releases of Python. Left out on purpose:
# 0.0.0.0/8 (which machine it means depends on the system), 169.254.0.0/16 and fe80::/10 (link-local: clouds answer
# there with services of their own), 100.64.0.0/10 (shared with one's internet provider), and addresses that carry an
# IPv4 address across a gateway (NAT64, 6to4, Teredo).
NEAR = tuple(
    map(ipaddress.ip_network, ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"))
)

# (address family, address as the socket module takes it)
Address = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]


def is_near(address: str) -> bool:
    """Whether an IP address is this machine's or lies in a private network.

    Args:
      address: IPv4 or IPv6; an IPv4 address written as IPv6 (``::ffff:10.0.0.1``) is judged as the IPv4 address.

    Raises:
      ValueError: it is not an IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return any(ip in network for network in NEAR)


def resolve(host: str, port: int, anywhere: bool) -> list[Address]:
    """The addresses of a host, all of them checked.

    Args:
      host: name or IP address, without brackets.
      port: TCP port.
      anywhere: also allow addresses that are not :func:`is_near`.

    Returns:
      At least one address, in the order to try them.

    Raises:
      ValueError: the name is unknown, or one of its addresses is not near and ``anywhere`` is False.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"host {host!r} of the endpoint is unknown; check its spelling and the name server") from error
    far = sorted({str(address[0]) for *_, address in found if not is_near(str(address[0]))})
    if far and not anywhere:
        raise ValueError(
            f"host {host!r} of the endpoint has the address {', '.join(far)}; expected this machine or a private "
            f"network ({', '.join(map(str, NEAR))}). Data use agreements such as PhysioNet's forbid sending reports to "
            "third parties; if yours allows it, pass --send_reports_off_this_machine"
        )
    return [(family, address) for family, _, _, _, address in found]  # type: ignore[misc]


def connect(addresses: list[Address], timeout: float) -> socket.socket:
    """A TCP connection to the first of some addresses that answers.

    Args:
      addresses: from :func:`resolve`.
      timeout: seconds to wait for each.

    Raises:
      OSError: none answered; the error is the last one's.
    """
    for at, (family, address) in enumerate(addresses, 1):
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a request goes out in two pieces
            return connection
        except OSError:
            connection.close()
            if at == len(addresses):
                raise
    raise ValueError("addresses is empty; expected at least one")

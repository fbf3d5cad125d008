import pytest

from coordinator.service.throttle import Throttle, caller_address


class Clock:
    """Says the time that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def admitted(throttle: Throttle, address: str, calls: int) -> int:
    return sum(throttle.admits(address) for _ in range(calls))


def test_a_burst_and_then_so_many_a_second() -> None:
    clock = Clock()
    throttle = Throttle(per_second=2.0, burst=5.0, clock=clock)
    assert admitted(throttle, "a", 20) == 5
    clock.now += 1.0
    assert admitted(throttle, "a", 20) == 2
    clock.now += 1000.0
    assert admitted(throttle, "a", 20) == 5


def test_one_address_does_not_shut_out_another() -> None:
    throttle = Throttle(per_second=1.0, burst=5.0, clock=Clock())
    assert admitted(throttle, "a", 1000) == 5
    assert admitted(throttle, "b", 1000) == 5


def test_all_addresses_together_have_ten_times_as_much() -> None:
    clock = Clock()
    throttle = Throttle(per_second=1.0, burst=5.0, clock=clock)
    assert sum(admitted(throttle, str(number), 5) for number in range(100)) == 50
    clock.now += 1.0
    assert sum(admitted(throttle, str(number), 5) for number in range(100, 200)) == 10


def test_being_refused_costs_nothing_more() -> None:
    clock = Clock()
    throttle = Throttle(per_second=1.0, burst=1.0, clock=clock)
    assert admitted(throttle, "a", 100) == 1
    clock.now += 1.0
    assert admitted(throttle, "a", 100) == 1


def test_memory_is_bounded_and_forgets_who_called_longest_ago() -> None:
    clock = Clock()
    throttle = Throttle(per_second=1e-6, burst=2000.0, clock=clock)
    for number in range(3000):
        throttle.admits(str(number))
    assert len(throttle._by_address) == 1024
    assert set(throttle._by_address) == {str(number) for number in range(3000 - 1024, 3000)}


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.7:50000", "ipv4:192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50000", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:50000", "ipv6:2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:50000", "ipv6:fe80::/64"),
        ("ipv6:%5B::ffff:192.0.2.7%5D:50000", "ipv4:192.0.2.7"),
        ("ipv6:%5B::1%5D:50000", "ipv6:::/64"),
    ],
)
def test_an_address_is_known_without_its_port_and_of_ipv6_by_its_network(
    peer: str, address: str
) -> None:
    assert caller_address(peer) == address

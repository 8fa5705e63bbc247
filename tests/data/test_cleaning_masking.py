"""Masking: which addresses and numbers are found, and which look-alikes stay."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.cleaning import Pipeline
from finetune.data.cleaning.masking import emails, ips, urls
from finetune.data.cleaning.numbers import cards, ibans, phones

MASKS: dict[str, str] = {
    "urls": "[URL]",
    "emails": "[EMAIL]",
    "ips": "[IP]",
    "phones": "[PHONE]",
    "cards": "[CARD]",
    "ibans": "[IBAN]",
}
PRIVATE = {
    "urls": "https://x.example/a?b=c",
    "emails": "jane.o'neil+cards@mail.x-y.example",
    "ips": "2001:db8::8a2e:370:7334",
    "phones": "+49 30 1234567",
    "cards": "4111 1111 1111 1111",
    "ibans": "DE89 3704 0044 0532 0130 00",
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("see https://[::1] and https://[2001:db8::1]:8080/a.", "see [URL] and [URL]."),
        ("https://x.example/?to=[EMAIL] https://x.example/[IP]/a", "[URL] [URL]"),
        ("[http://x.example] [words](http://x.example)", "[[URL]] [words]([URL])"),
        ("wWw.x.example", "[URL]"),
        ("www. //x www", "www. //x www"),
    ],
)
def test_urls_end_where_the_address_ends(before: str, after: str) -> None:
    assert urls(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("write to jane.doe+cards@mail.x-y.example, please", "write to [EMAIL], please"),
        ("'o'neil@x.example' <a_b%c@x.example>.", "'[EMAIL]' <[EMAIL]>."),
        ("müller@bücher.example a@xn--bcher-kva.xn--p1ai", "[EMAIL] [EMAIL]"),
        ("mailto:a@x.example;b@y.example", "mailto:[EMAIL];[EMAIL]"),
        ("@jane me @ home, a@localhost, x @y.example 5@3.2", "@jane me @ home, a@localhost, x @y.example 5@3.2"),
    ],
)
def test_emails(before: str, after: str) -> None:
    assert emails(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from 192.168.0.1, 10.0.0.255:8080 and 10.0.0.0/8.", "from [IP], [IP]:8080 and [IP]/8."),
        ("ping 2001:db8::1 or ::1 or fe80::1%eth0.", "ping [IP] or [IP] or [IP]."),
        ("address:2001:db8::1: down, ip=1:2:3:4:5:6:7:8", "address:[IP]: down, ip=[IP]"),
        ("[::ffff:192.0.2.1]", "[[IP]]"),
        ("256.1.1.1 1.2.3 1.2.3.4.5 v1.2.3.4 01.2.3.4", "256.1.1.1 1.2.3 1.2.3.4.5 v1.2.3.4 01.2.3.4"),
        ("12:30:45 std::vector a::b :: :100: 1::2::3 ::", "12:30:45 std::vector a::b :: :100: 1::2::3 ::"),
    ],
)
def test_ips_are_valid_addresses_of_both_versions(before: str, after: str) -> None:
    assert ips(before) == after


@settings(deadline=None, max_examples=100)
@given(st.ip_addresses(), st.sampled_from([" ", ",", "(", ")", '"', "="]))
def test_every_address_is_found(address: ipaddress.IPv4Address | ipaddress.IPv6Address, around: str) -> None:
    if any(map(str.isdigit, str(address))):  # `::` alone is left to the writers of programs
        assert ips(f"at{around}{address} now") == f"at{around}[IP] now"


@pytest.mark.parametrize(
    "number",
    [
        "+1 415 555 0123",
        "+14155550123",
        "+1 (415) 555-0123",
        "+44 20 7946 0958",
        "+44(0)20 7946 0958",
        "+33 1 23 45 67 89",
        "+49 (0)30/1234567",
        "+49-171-1234567",
        "+86 138 1234 5678",
        "+91 98765 43210",
        "0049 30 1234567",
        "004930123456",
        "(415) 555-0123",
        "415-555-2671",
        "415.555.2671",
        "1-415-555-2671",
        "020 7946 0958",
        "07700 900123",
        "07700900123",
        "(0171) 1234567",
        "0171/1234567",
        "089 / 123 456 78",
        "01 23 45 67 89",
        "06.12.34.56.78",
        "030-12345678",
        "04 1234 5678",
        "98765 43210",
        "138 1234 5678",
        "(11) 91234-5678",
        "8 (495) 123-45-67",
    ],
)
def test_phones_are_found_as_they_are_commonly_written(number: str) -> None:
    for before, after in [("", ""), ("call ", " now"), ("(", ")"), ("tel:", "."), ("Order 1234 ", ", 5 items")]:
        assert phones(f"{before}{number}{after}") == f"{before}[PHONE]{after}"


@pytest.mark.parametrize(
    "text",
    [
        "2023-10-12 10:30:00",
        "12.10.2023 10:30",
        "01/02/2023 and 03-04-2023",
        "05 12 2024 18 people",
        "from 01.02.2023 to 05.06.2023",
        "20231012T103000Z",
        "$1,234,567.89",
        "1 234 567,00 EUR",
        "EUR 1.234.567,89",
        "0.123456789",
        "order 12345678",
        "order #4155550123",
        "invoice 2023-000123",
        "5 + 12345 = 12350",
        "123-45-6789",
        "555-0123",
        "100-200",
        "978-3-16-148410-0",
        "192.168.100.200",
        "AB0123456789",
        "3.14159265358979",
        "4111 1111 1111 1111",
        "DE89 3704 0044 0532 0130 00",
    ],
)
def test_phones_leave_dates_prices_and_other_numbers_alone(text: str) -> None:
    assert phones(text) == text
    assert phones(f"at {text}, please") == f"at {text}, please"


def test_a_date_behind_a_phone_number_stays() -> None:
    assert phones("+49 30 1234567 12.10.2023 10:30") == "[PHONE] 12.10.2023 10:30"
    assert phones("0171 1234567 12 10 2023") == "[PHONE] 12 10 2023"
    assert phones("0171 1234567 2023-10-12") == "[PHONE] 2023-10-12"


def test_a_number_of_one_kind_does_not_swallow_the_next_of_another() -> None:
    assert phones("DE89 3704 0044 0532 0130 00 (415) 555-0123") == "DE89 3704 0044 0532 0130 00 [PHONE]"
    assert phones("4111 1111 1111 1111 020 7946 0958") == "4111 1111 1111 1111 [PHONE]"


def test_bare_takes_long_runs_of_digits_for_phone_numbers() -> None:
    assert phones("4155550123 123456789", bare=True) == "[PHONE] 123456789"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("4111111111111111 4111-1111-1111-1111", "[CARD] [CARD]"),
        ("3782 822463 10005, 6011 1111 1111 1117", "[CARD], [CARD]"),
        ("4111 1111 1111 1111 5500 0000 0000 0004", "[CARD] [CARD]"),
        ("4111 1111 1111 1111 123", "[CARD] 123"),
        ("4111 1111 1111 1111 12/26", "[CARD] 12/26"),
        ("2 4111 1111 1111 1111", "2 [CARD]"),
        ("4222222222222", "[CARD]"),
        ("6304000000000000000", "[CARD]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),
        ("0000 0000 0000 0000", "0000 0000 0000 0000"),
        ("2023-10-12 10-30-00", "2023-10-12 10-30-00"),
        ("41111111111111111111", "41111111111111111111"),
        ("A4111111111111111", "A4111111111111111"),
    ],
)
def test_cards_have_a_right_check_digit(before: str, after: str) -> None:
    assert cards(before) == after


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 6), st.text("0123456789", min_size=11, max_size=17))
def test_one_check_digit_of_ten_makes_a_card(first: int, middle: str) -> None:
    found = [digit for digit in "0123456789" if cards(f"{first}{middle}{digit}") == "[CARD]"]
    assert len(found) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("DE89 3704 0044 0532 0130 00 and GB82WEST12345698765432.", "[IBAN] and [IBAN]."),
        ("to de89370400440532013000 today", "to [IBAN] today"),
        ("GB82-WEST-1234-5698-7654-32 NL91 ABNA 0417 1643 00", "[IBAN] [IBAN]"),
        ("NO93 8601 1117 947 5", "[IBAN] 5"),
        ("MT84 MALT 0110 0001 2345 MTLC AST0 01S", "[IBAN]"),
        ("DE89 3704 0044 0532 0130 01", "DE89 3704 0044 0532 0130 01"),
        ("ZZ89 3704 0044 0532 0130 00", "ZZ89 3704 0044 0532 0130 00"),
        ("DE893704004405320130001", "DE893704004405320130001"),
        ("XDE89370400440532013000", "XDE89370400440532013000"),
        ("AB12 is a code of some length", "AB12 is a code of some length"),
    ],
)
def test_ibans_have_their_countrys_length_and_right_check_digits(before: str, after: str) -> None:
    assert ibans(before) == after


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 21), st.sampled_from("0123456789"))
def test_an_iban_with_one_wrong_digit_is_none(place: int, digit: str) -> None:
    good = "DE89370400440532013000"
    text = good[:place] + digit + good[place + 1 :]
    assert (ibans(text) == "[IBAN]") is (text == good)


@pytest.mark.parametrize("name", MASKS)
def test_every_masking_cleaner_masks_removes_or_only_counts(name: str) -> None:
    text = f"this {PRIVATE[name]} there"
    expected = {"mask": f"this {MASKS[name]} there", "remove": "this  there", "keep": text}
    for action, after in expected.items():
        pipeline = Pipeline([(name, {"action": action})])
        assert pipeline.texts(["nothing", text]) == (["nothing", after], {})
        assert pipeline.reports[0].rows_touched == 1
        assert pipeline.reports[0].examples == [{"before": text, "after": after}]
    assert Pipeline([(name, {"mask": r"<\1>"})])(text) == r"this <\1> there"


FUNCTIONS: dict[str, Callable[..., str]] = {
    "urls": urls,
    "emails": emails,
    "ips": ips,
    "phones": phones,
    "cards": cards,
    "ibans": ibans,
}
PIECES = [*PRIVATE.values(), *MASKS.values(), "(415) 555-0123", "192.0.2.1", "www.x.example", *"12a\u00e9", "(", "-"]
SEPARATORS = [" ", ", ", ": ", "\n", ". ", ") (", " / "]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(SEPARATORS)).map("".join), max_size=8).map("".join))
def test_a_masked_text_stays_as_it_is_and_no_mask_is_touched(text: str) -> None:
    for name, clean in FUNCTIONS.items():
        masked = clean(text)
        assert clean(masked) == masked, name
    order: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in MASKS]
    everything = Pipeline(order)(text)
    assert Pipeline(order)(everything) == everything


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_nothing_to_mask(name: str) -> None:
    text = " ".join(MASKS.values()) + ": " + ",".join(MASKS.values()) + "".join(MASKS.values())
    assert FUNCTIONS[name](text) == text


@settings(deadline=None, max_examples=200)
@given(st.permutations(list(MASKS)))
def test_no_private_text_is_left_in_whatever_order_the_cleaners_run(order: list[str]) -> None:
    text = ", ".join(PRIVATE.values())
    assert Pipeline([(name, {}) for name in order])(text) == ", ".join(MASKS.values())

"""The key stays in memory, nothing is blocked by the policy, nothing leaves the origin."""

from __future__ import annotations

from typing import Any

from .conftest import Site, Watched, watch
from .page_parts import Browser, Page, ask, choose, column, example, expect, overlay, picture_file

KEY = "sk-tenant-1234567890"
STORES = """async () => JSON.stringify([
  {...localStorage}, {...sessionStorage}, document.cookie, location.href, history.state,
  (await indexedDB.databases()).map(one => one.name), await caches.keys(),
])"""


def test_a_tenants_key_opens_the_server_and_stays_in_memory(page: Page, site: Site) -> None:
    site.controls.key = KEY
    page.reload()
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("401 this server wants the API key")
    field = page.get_by_label("API key")
    expect(field).to_have_attribute("type", "password")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill(f" {KEY} ")
    field.press("Enter")
    expect(alert).to_have_count(0)
    sent: list[str | None] = []
    page.on("request", lambda one: sent.append(one.headers.get("authorization")) if "/v1/" in one.url else None)
    choose(page, picture_file())
    expect(overlay(page)).to_be_visible()
    ask(page, "what is it ?")
    assert set(sent) == {f"Bearer {KEY}"}
    page.get_by_role("button", name="Copy as… (setting A)").click()
    for kind in ("curl", "OpenAI SDK", "preset"):
        page.get_by_role("dialog").get_by_role("button", name=kind, exact=True).click()
        assert KEY not in page.content()
    page.keyboard.press("Escape")
    stores: str = page.evaluate(STORES)
    assert stores == f'[{{}},{{}},"","{site.url}/playground",null,[],[]]'
    page.reload()
    expect(alert).to_contain_text("401")
    assert field.input_value() == ""
    page.go_back()
    page.go_forward()
    assert page.get_by_label("API key").input_value() == ""


def test_only_the_public_routes_are_used(page: Page, site: Site) -> None:
    paths: set[str] = set()
    page.on("request", lambda one: paths.add(one.url.removeprefix(site.url)) if one.url.startswith("http") else None)
    page.reload()
    example(page, "a video")
    expect(overlay(page)).to_be_visible()
    ask(page)
    public = {
        "/playground", "/v1/models", "/v1/pruning/strategies", "/v1/pruning/presets", "/v1/pruning/preview",
        "/v1/chat/completions",
    }  # fmt: skip
    assert {path for path in paths if not path.startswith("/playground/")} == public


def test_an_idle_page_asks_nothing(page: Page) -> None:
    example(page, "a web page")
    expect(overlay(page)).to_be_visible()
    ask(page)
    requests: list[Any] = []
    page.on("request", lambda one: requests.append(one))
    page.wait_for_timeout(1200)
    assert requests == []


def test_a_violation_of_the_policy_would_be_noticed(browser: Browser, site: Site) -> None:
    watched = Watched()
    context = browser.new_context()
    opened = context.new_page()
    watch(opened, site, watched)
    opened.goto(f"{site.url}/playground")
    expect(column(opened)).to_be_visible()
    assert watched.problems == []
    opened.evaluate("() => { document.body.setAttribute('style', 'color: red'); }")
    opened.evaluate(
        "() => { const one = document.createElement('script'); one.textContent = '1'; document.body.append(one); }"
    )
    opened.wait_for_timeout(100)
    context.close()
    assert len([text for text in watched.problems if "Content Security Policy" in text]) == 2

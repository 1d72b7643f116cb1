"""Control calls to a running server: health, version, tokenization, counters. Never on the clock."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_speedbench.engines.launch.environment import MASK
from pytest_speedbench.errors import EngineError

if TYPE_CHECKING:
    import requests


KEY_VARIABLE = "SPEEDBENCH_API_KEY"
"""From which engines take the key that a server wants."""


class Control:
    """A server's base URL, with one way to call it that turns every fault into an `EngineError`.

    Args:
        url: base URL, such as `http://127.0.0.1:8000`.
        timeout_s: how long one call may take, in seconds.
        headers: of every call. What an `Authorization` among them holds is masked in errors.
    """

    def __init__(self, url: str, timeout_s: float = 60.0, headers: Mapping[str, str] | None = None) -> None:
        import requests

        self.url: str = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy of the environment must not stand between us and localhost
        self._session.headers.update(headers or {})
        if authorities := os.environ.get("SSL_CERT_FILE"):  # as the client that sends the prompts has it
            self._session.verify = authorities

    def request(self, method: str, path: str, json: Any = None) -> requests.Response:
        """One call; any status is returned.

        Raises:
            EngineError: the server could not be reached or did not answer in time.
        """
        import requests

        try:
            return self._session.request(method, self.url + path, json=json, timeout=self.timeout_s)
        except requests.RequestException as error:
            told = without_key(str(error), self._session.headers)
            raise EngineError(f"{method} {self.url}{path} failed: {told}") from None

    def get(self, path: str) -> requests.Response:
        """GET, any status."""
        return self.request("GET", path)

    def post(self, path: str, json: Any = None) -> requests.Response:
        """POST with a JSON body, any status."""
        return self.request("POST", path, json)

    def get_json(self, path: str) -> Any:
        """GET a JSON document.

        Raises:
            EngineError: status other than 200, or a body that is no JSON.
        """
        return _json(self.get(path))

    def post_json(self, path: str, json: Any) -> Any:
        """POST and read a JSON document back; raises as `get_json`."""
        return _json(self.post(path, json))

    def require_ready(self, path: str) -> None:
        """Make sure that a server that others started answers GET `path` with 200.

        Raises:
            EngineError: it cannot be reached, refuses the key, or is not ready.
        """
        where = f"--speedbench-url={self.url}"
        try:
            response = self.get(path)
        except EngineError as error:
            raise EngineError(f"{where}: {error}; is the server running?") from None
        if response.status_code != 200:
            raise EngineError(f"{where}: {refusal(response)}")

    def answers(self, path: str) -> bool:
        """Whether GET `path` answers 200 within two seconds."""
        import requests

        try:
            return self._session.get(self.url + path, timeout=2.0).status_code == 200
        except requests.RequestException:
            return False

    def close(self) -> None:
        """Drop the connection."""
        self._session.close()


def without_key(text: str, headers: Mapping[str, Any]) -> str:
    """A text for people without the key that `headers` held: a server's answer may repeat it."""
    key = str(headers.get("Authorization", "")).rpartition(" ")[2]
    return text.replace(key, MASK) if key else text


def refusal(response: requests.Response) -> EngineError:
    """The error for an answer that is not 200; of a missing or wrong key it says what to set."""
    advice = ""
    if response.status_code in (401, 403):
        sent = "Authorization" in response.request.headers
        advice = (
            f"; {'the key that was sent is not accepted' if sent else 'no key was sent'}: set {KEY_VARIABLE}"
        )
    text = " ".join(without_key(response.text, response.request.headers)[:500].split())
    where = f"{response.request.method} {response.request.url}"
    return EngineError(f"{where} answered {response.status_code}: {text}{advice}")


def _json(response: requests.Response) -> Any:
    if response.status_code != 200:
        raise refusal(response)
    try:
        return response.json()
    except ValueError:
        where = f"{response.request.method} {response.request.url}"
        told = without_key(response.text, response.request.headers)
        raise EngineError(f"{where} answered no JSON: {told[:200]!r}") from None

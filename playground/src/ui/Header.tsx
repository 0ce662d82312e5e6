import { useState } from "preact/hooks";
import { ServerError } from "../api/client";
import { connect, connecting, connection, key, model, models } from "../state/store";
import { Problem } from "./Problem";

export function Header() {
  const [typed, setTyped] = useState("");
  const use = () => {
    key.value = typed.trim();
    void connect();
  };
  const wantsKey = connection.value instanceof ServerError && connection.value.status === 401;
  return (
    <header class="top">
      <h1>
        vllm-prune <span>playground</span>
      </h1>
      <label class="inline">
        Model
        <select
          value={model.value}
          onChange={(event) => (model.value = event.currentTarget.value)}
          disabled={!models.value.length}
        >
          {models.value.length ? (
            models.value.map((name) => (
              <option key={name} value={name}>
                {short(name)}
              </option>
            ))
          ) : (
            <option value="">none</option>
          )}
        </select>
      </label>
      <div class="inline key">
        <label for="key">API key</label>
        <input
          id="key"
          type="password"
          autocomplete="off"
          spellcheck={false}
          placeholder="none"
          value={typed}
          aria-describedby="key-note"
          aria-invalid={wantsKey}
          onInput={(event) => setTyped(event.currentTarget.value)}
          onKeyDown={(event) => event.key === "Enter" && use()}
        />
        <button type="button" onClick={use}>
          Use
        </button>
        <small id="key-note">kept in memory only</small>
      </div>
      <p class="state" role="status">
        {connecting.value ? (
          "connecting…"
        ) : connection.value ? (
          ""
        ) : (
          <>
            <i class="dot" />
            connected
          </>
        )}
      </p>
      {connection.value && (
        <Problem error={connection.value} hint={wantsKey ? "Type the key of a tenant above and press Use." : undefined}>
          <button type="button" onClick={() => void connect()}>
            Try again
          </button>
        </Problem>
      )}
    </header>
  );
}

/** The last two parts of a path; names of a hub have no more. */
function short(name: string): string {
  const parts = name.split("/");
  return parts.length > 2 ? `…/${parts.slice(-2).join("/")}` : name;
}

import type { ComponentChildren } from "preact";
import { ServerError } from "../api/client";

/** An error in the server's words, with the field to change. */
export function Problem({
  error,
  hint,
  children,
}: {
  error: Error;
  hint?: string | undefined;
  children?: ComponentChildren;
}) {
  const server = error instanceof ServerError ? error : null;
  return (
    <div class="problem" role="alert">
      <p>
        {server !== null && server.status > 0 && <b>{server.status} </b>}
        {error.message}
      </p>
      {server?.param && (
        <p class="param">
          Field to change: <code>{server.param}</code>
        </p>
      )}
      {server?.retryAfter && <p>Try again in {server.retryAfter} s.</p>}
      {hint && <p>{hint}</p>}
      {children}
    </div>
  );
}

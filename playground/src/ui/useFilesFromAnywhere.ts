import { useEffect, useState } from "preact/hooks";

const filesOf = (transfer: DataTransfer | null): File[] => [...(transfer?.files ?? [])];

/**
 * Take files that are dropped or pasted anywhere on the page; text that is dragged about is left to the browser.
 *
 * @returns whether files are being dragged over the page.
 */
export function useFilesFromAnywhere(take: (files: File[]) => void): boolean {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const listening = new AbortController();
    const { signal } = listening;
    const drag = (event: DragEvent) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      setOver(event.type === "dragover");
      if (event.type === "drop") take(filesOf(event.dataTransfer));
    };
    for (const kind of ["drop", "dragover", "dragleave"] as const) document.addEventListener(kind, drag, { signal });
    const paste = (event: ClipboardEvent) => {
      const files = filesOf(event.clipboardData);
      if (files.length) take(files);
    };
    document.addEventListener("paste", paste, { signal });
    return () => listening.abort();
  }, []);
  return over;
}

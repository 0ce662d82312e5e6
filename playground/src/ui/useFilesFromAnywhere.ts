import { useEffect, useState } from "preact/hooks";
import { DRAGGED_EXAMPLE, takeDragged } from "../state/examples";

const filesOf = (transfer: DataTransfer | null): File[] => [...(transfer?.files ?? [])];

/**
 * Take files and examples that are dropped anywhere on the page, and files that are pasted; text that is dragged about
 * is left to the browser.
 *
 * @returns whether something of these is being dragged over the page.
 */
export function useFilesFromAnywhere(take: (files: File[]) => void): boolean {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const listening = new AbortController();
    const { signal } = listening;
    const drag = (event: DragEvent) => {
      const { dataTransfer } = event;
      const example = dataTransfer?.types.includes(DRAGGED_EXAMPLE);
      if (!dataTransfer || !(example || dataTransfer.types.includes("Files"))) return;
      event.preventDefault();
      setOver(event.type === "dragover");
      if (event.type !== "drop") return;
      if (example) void takeDragged(dataTransfer.getData(DRAGGED_EXAMPLE));
      else take(filesOf(dataTransfer));
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

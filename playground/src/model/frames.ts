/** Frames of a video, decoded by the browser. */

const MOST_CACHED = 128;
const WIDEST = 960;
const SEEK_MILLISECONDS = 8000;
/** After a seek the element may hold the old frame until the new one is presented; longest wait for that. */
const PRESENT_MILLISECONDS = 250;

/** Seeks one video; frames come one after the other, the latest wish first. */
export class Frames {
  private readonly video = document.createElement("video");
  private readonly cache = new Map<number, ImageBitmap>();
  private queue: Promise<unknown> = Promise.resolve();
  readonly ready: Promise<void>;

  constructor(url: string) {
    this.video.muted = true;
    this.video.playsInline = true;
    this.video.preload = "auto";
    this.ready = new Promise((resolve, reject) => {
      this.video.onloadeddata = () => resolve();
      this.video.onerror = () =>
        reject(new Error("This browser cannot show the video; the kept tokens are drawn on a plain ground."));
    });
    this.ready.catch(() => undefined);
    this.video.src = url;
  }

  get duration(): number {
    return Number.isFinite(this.video.duration) ? this.video.duration : 0;
  }

  get width(): number {
    return this.video.videoWidth;
  }

  get height(): number {
    return this.video.videoHeight;
  }

  /** Time in seconds at the middle of a temporal step, where the steps share the video evenly. */
  timeOf(step: number, steps: number): number {
    return ((step + 0.5) / steps) * this.duration;
  }

  /** The frame at a time in seconds. */
  at(time: number): Promise<ImageBitmap> {
    const key = Math.round(time * 1000);
    const known = this.cache.get(key);
    if (known) return Promise.resolve(known);
    const wanted = this.queue.then(() => this.cache.get(key) ?? this.grab(time, key));
    this.queue = wanted.catch(() => undefined);
    return wanted;
  }

  private async grab(time: number, key: number): Promise<ImageBitmap> {
    await this.ready;
    if (Math.abs(this.video.currentTime - time) > 0.001) {
      await new Promise<void>((resolve, reject) => {
        const late = setTimeout(() => reject(new Error("the video does not seek")), SEEK_MILLISECONDS);
        const done = () => {
          clearTimeout(late);
          resolve();
        };
        let presented = false;
        let sought = false;
        this.video.requestVideoFrameCallback?.(() => {
          presented = true;
          if (sought) done();
        });
        this.video.onseeked = () => {
          sought = true;
          if (presented) done();
          // A time within the frame at hand presents none.
          else setTimeout(done, PRESENT_MILLISECONDS);
        };
        this.video.currentTime = time;
      });
    }
    const width = Math.min(this.width, WIDEST);
    const height = Math.max(1, Math.round((this.height * width) / this.width));
    const frame = await createImageBitmap(this.video, { resizeWidth: width, resizeHeight: height });
    if (this.cache.size >= MOST_CACHED) {
      const oldest = this.cache.keys().next().value!;
      this.cache.delete(oldest);
    }
    this.cache.set(key, frame);
    return frame;
  }

  close(): void {
    this.video.removeAttribute("src");
    this.video.load();
    this.cache.clear();
  }
}

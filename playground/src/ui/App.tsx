import { media, settings } from "../state/store";
import { Columns } from "./Columns";
import { Difference } from "./Difference";
import { Header } from "./Header";
import { InputPanel } from "./InputPanel";
import { Start } from "./Start";
import { SweepPanel } from "./SweepPanel";
import { ViewBar } from "./ViewBar";

export function App() {
  return (
    <>
      <Header />
      <div class="layout">
        <InputPanel />
        <main>
          {media.value.length > 0 ? <ViewBar /> : <Start />}
          <Columns />
          {media.value.length > 0 && settings.value.length > 1 && <Difference />}
          <SweepPanel />
        </main>
      </div>
    </>
  );
}

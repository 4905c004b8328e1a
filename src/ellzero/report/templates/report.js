(function () {
  "use strict";
  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);
  document.querySelectorAll("svg > title").forEach(function (t) { t.remove(); });
  document.querySelectorAll("svg .m > title").forEach(function (t) {
    t.parentNode.setAttribute("data-tip", t.textContent);
    t.remove();
  });
  function show(e) {
    var mark = e.target.closest && e.target.closest("[data-tip]");
    if (!mark) { tip.hidden = true; return; }
    tip.textContent = mark.getAttribute("data-tip");
    tip.hidden = false;
    var w = tip.offsetWidth, h = tip.offsetHeight, page = document.documentElement.clientWidth;
    var x = Math.max(8, Math.min(e.clientX + 14, page - w - 8));
    var y = e.clientY - h - 12;
    tip.style.left = x + "px";
    tip.style.top = (y < 4 ? e.clientY + 18 : y) + "px";
  }
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", function () { tip.hidden = true; }, { passive: true });
  var seen = window.IntersectionObserver && new IntersectionObserver(function (all) {
    all.forEach(function (e) {
      if (e.isIntersecting) { seen.unobserve(e.target); play(e.target); }
    });
  }, { threshold: 0.4 });
  function play(f) {
    f.classList.remove("play");
    void f.offsetWidth;
    f.classList.add("play");
    setTimeout(function () { f.classList.remove("play"); }, 4000);
  }
  document.querySelectorAll("figure").forEach(function (f) {
    if (!f.querySelector(".draw")) { return; }
    var b = document.createElement("button");
    b.className = "again";
    b.textContent = "Play again";
    b.onclick = function () { play(f); };
    f.insertBefore(b, f.querySelector("details"));
    if (seen) { seen.observe(f); }
  });
})();

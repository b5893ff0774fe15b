// Saves the report that is shown as a file.
element.addEventListener("click", (event) => {
  if (!event.target.matches(".download-report")) return;
  const page = new Blob([element.querySelector("iframe").srcdoc], { type: "text/html" });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(page);
  link.download = "report.html";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});

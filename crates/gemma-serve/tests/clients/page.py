"""The web page in headless Chromium: chat with streaming, stop, edit and regenerate, infilling, images, status, keyboard.

Screenshots go to the folder given by $SCREENSHOTS.
"""

import base64
import os
import shutil
import tempfile
import time

from serving import Server, skip

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    skip("the package selenium is not installed")
if not shutil.which("chromium") or not shutil.which("chromedriver"):
    skip("chromium and chromedriver are not installed")

FOLDER = os.environ.get("SCREENSHOTS") or tempfile.mkdtemp(prefix="gemma-page-")
IMAGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../../models/paligemma/demo/images")


def browser(dark=False, phone=False):
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *quiet):
        options.add_argument(argument)
    options.add_argument("--user-data-dir=" + tempfile.mkdtemp(prefix="gemma-chromium-"))
    options.add_argument("--window-size=1100,800")
    if dark:
        options.add_argument("--force-dark-mode")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    if phone:
        # a window cannot be so narrow
        size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    return driver


def drop(driver, target, path):
    """Drops a file on an element, as a hand would."""
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode()
    driver.execute_script(
        """const bytes = Uint8Array.from(atob(arguments[1]), c => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], 'image.png', { type: 'image/png' }));
        arguments[0].dispatchEvent(new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true }));""",
        target,
        data,
    )


def run(server):
    driver = browser()
    wait = WebDriverWait(driver, 60)
    find = lambda selector: driver.find_element(By.CSS_SELECTOR, selector)
    all_of = lambda selector: driver.find_elements(By.CSS_SELECTOR, selector)
    shot = lambda name: driver.save_screenshot(os.path.join(FOLDER, name + ".png"))
    idle = lambda: wait.until(lambda _: find("#send").text == "Send")

    driver.get(server.url)
    wait.until(lambda _: all_of("#model option"))
    assert len(all_of("#model option")) == 3
    driver.execute_script("document.getElementById('max').value = 40")
    # the keyboard alone: the box is reached with Tab, Enter sends
    find("#text").send_keys("What is two and three?", Keys.ENTER)
    wait.until(lambda _: len(all_of(".msg.assistant")) == 1)
    idle()
    first = find(".msg.assistant .body").text
    assert first and not all_of(".error"), driver.get_log("browser")
    shot("chat")
    find("#text").send_keys("And again?", Keys.SHIFT, Keys.ENTER, Keys.NULL, "Really?", Keys.ENTER)
    idle()
    assert [len(all_of(".msg.user")), len(all_of(".msg.assistant"))] == [2, 2]
    assert "\n" in all_of(".msg.user .body")[1].text
    button = lambda name: next(b for b in all_of(".acts button") if b.get_attribute("textContent") == name)
    driver.execute_script("arguments[0].click()", button("Regenerate"))
    idle()
    assert len(all_of(".msg.assistant")) == 2
    driver.execute_script("arguments[0].click()", button("Edit"))
    assert find("#text").get_attribute("value") == "What is two and three?" and not all_of(".msg")
    # stop: a long answer ends with Escape
    driver.execute_script("document.getElementById('max').value = 900; document.getElementById('temperature').value = 2")
    find("#text").send_keys(Keys.ENTER)
    wait.until(lambda _: all_of(".msg.assistant .body") and len(find(".msg.assistant .body").text) > 5)
    find("#text").send_keys(Keys.ESCAPE)
    idle()
    # text of the model and of the person is never markup
    driver.execute_script("messages = [{ role: 'user', text: '<img src=x onerror=window.hacked=1>', images: [] }]; draw()")
    assert driver.execute_script("return window.hacked") is None and not all_of(".msg .body img")
    driver.execute_script("messages = []; draw()")

    # tabs by arrow keys
    find("#tab-chat").send_keys(Keys.ARROW_RIGHT)
    assert find("#infill").is_displayed() and not find("#chat").is_displayed()
    driver.execute_script("document.getElementById('model').selectedIndex = 1")
    find("#suffix").send_keys(Keys.CONTROL, Keys.ENTER)
    wait.until(lambda _: find("#hole").text or find("#fill-note").text not in ("", "filling"))
    wait.until(lambda _: find("#fill-note").text != "filling")
    shot("infill")
    assert find("#hole").text, find("#fill-note").text
    before = find("#prefix").get_attribute("value")
    find("#hole").send_keys(Keys.TAB)
    assert len(find("#prefix").get_attribute("value")) > len(before)

    find("#tab-image").click()
    driver.execute_script("document.getElementById('model').selectedIndex = 2")
    image = os.path.join(IMAGES, sorted(name for name in os.listdir(IMAGES) if name.endswith(".png"))[0])
    drop(driver, find("#image"), image)
    wait.until(lambda _: find("#look").is_enabled())
    find("#look").click()
    wait.until(lambda _: find("#seen").text not in ("", "looking"))
    assert find("#seen").get_attribute("class") == "", find("#seen").text
    print("caption:", find("#seen").text)
    for task in ("detect", "segment"):
        driver.execute_script(f"const t = document.getElementById('task'); t.value = '{task}'; t.onchange()")
        driver.execute_script("document.getElementById('objects').value = 'circle ; square'")
        find("#look").click()
        wait.until(lambda _: find("#seen").text not in ("", "looking") and find("#look").is_enabled())
        print(task + ":", find("#seen").text)
        shot(task)

    find("#tab-status").click()
    wait.until(lambda _: "Tokens per second" in find("#tiles").text)
    time.sleep(1.2)
    shot("status")
    severe = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE" and "favicon" not in entry["message"]]
    assert not [entry for entry in severe if "/v1/vision/segment" not in entry["message"]], severe
    loaded = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(name.startswith(server.url) for name in loaded), loaded
    driver.quit()

    for name, dark, phone in (("dark", True, False), ("phone", False, True)):
        driver = browser(dark, phone)
        wait = WebDriverWait(driver, 60)
        driver.get(server.url)
        driver.execute_script("document.documentElement.dataset.theme = arguments[0]", "dark" if dark else "light")
        wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, "#model option"))
        driver.execute_script("document.getElementById('max').value = 20")
        driver.find_element(By.CSS_SELECTOR, "#text").send_keys("What is two and three?", Keys.ENTER)
        wait.until(lambda _: driver.find_element(By.CSS_SELECTOR, "#send").text == "Send")
        wide = driver.execute_script("return document.documentElement.scrollWidth > innerWidth")
        assert not wide, "the page scrolls sideways"
        driver.save_screenshot(os.path.join(FOLDER, name + ".png"))
        driver.quit()


with Server("--model", "demo:gemma", "--also", "demo:codegemma", "--also", "demo:paligemma") as server:
    run(server)
print("page passed; screenshots in", FOLDER)

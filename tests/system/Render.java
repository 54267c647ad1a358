import freemarker.template.Configuration;
import freemarker.template.Template;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.StringWriter;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.HashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;

/**
 * Fills in a template with FreeMarker, as Amplitude does for a Cohort Webhook.
 *
 * Standard input: the template on the first line, then one message on each line: name, id,
 * in_cohort, computed_time, message_id and user ids, separated by commas. Standard output: what
 * comes out, one message on each line. Texts are UTF-8 in Base64; `#7` is a number, `-` is null.
 */
public class Render {
    public static void main(String[] args) throws Exception {
        Configuration configuration = new Configuration(Configuration.VERSION_2_3_23);
        configuration.setLocale(Locale.US);
        BufferedReader lines =
            new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
        Template template = new Template("body", decoded(lines.readLine()), configuration);
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            String[] fields = line.split(",", -1);
            List<Map<String, Object>> users = new ArrayList<>();
            for (int i = 5; i < fields.length; i++) {
                Map<String, Object> user = new HashMap<>(Map.of("user_properties", Map.of()));
                user.put("user_id", value(fields[i]));
                users.add(user);
            }
            Map<String, Object> input = Map.of(
                "cohort_name", decoded(fields[0]),
                "cohort_id", value(fields[1]),
                "in_cohort", Boolean.valueOf(decoded(fields[2])),
                "computed_time", value(fields[3]),
                "message_id", decoded(fields[4]),
                "users", users);
            StringWriter out = new StringWriter();
            template.process(Map.of("input", input), out);
            System.out.println(
                Base64.getEncoder().encodeToString(out.toString().getBytes(StandardCharsets.UTF_8)));
        }
    }

    private static Object value(String base64) {
        if (base64.equals("-")) return null;
        return base64.startsWith("#")
            ? (Object) Long.valueOf(base64.substring(1))
            : decoded(base64);
    }

    private static String decoded(String base64) {
        return new String(Base64.getDecoder().decode(base64), StandardCharsets.UTF_8);
    }
}

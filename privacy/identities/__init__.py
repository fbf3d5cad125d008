"""Who is who in a federation: certificates, enrolment and the signed roster. No network here."""
